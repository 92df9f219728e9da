"""Labels: which values are classes, their order, and a split that keeps their shares."""

import random
from collections import Counter

import pytest

from hfbsz.data.prepare.labels import SkippedRow, check_classes, class_of, order_labels, share_notes, stratified
from hfbsz.data.sources.texts import Template, as_text, unescape
from hfbsz.errors import UserError


@pytest.mark.parametrize(
    "value, label",
    [("pos", "pos"), (" pos ", "pos"), (3, "3"), (3.0, "3"), (0.5, "0.5"), (True, "True"), ("-1", "-1")],
)
def test_values_that_are_classes(value, label):
    assert class_of(value) == label


@pytest.mark.parametrize("value", [None, float("nan"), "", "  ", "nan", "NaN", "null", "<NA>"])
def test_values_that_are_no_class(value):
    with pytest.raises(SkippedRow):
        class_of(value)


@pytest.mark.parametrize("value", [["a", "b"], ("a",), {"a": 1}])
def test_several_labels_are_refused(value):
    with pytest.raises(ValueError, match="one class"):
        class_of(value)


def test_the_order_of_labels():
    assert order_labels(dict.fromkeys(["10", "9", "2"], 1), None, None, None) == ["2", "9", "10"]
    assert order_labels(dict.fromkeys(["b", "a", "10", "9"], 1), None, None, None) == ["10", "9", "a", "b"]
    assert order_labels({"neg": 1, "pos": 1}, None, ["pos", "neg"], None) == ["pos", "neg"]  # as the model has them
    assert order_labels({"neg": 1, "pos": 1}, None, ["pos", "neg", "mixed"], None) == ["pos", "neg", "mixed"]
    assert order_labels({"neg": 1, "pos": 1}, None, ["ham", "spam"], None) == ["neg", "pos"]
    assert order_labels({"w": 1, "s": 1}, None, None, ["s", "w", "x"]) == ["s", "w", "x"]  # as the data set names them
    assert order_labels({"a": 1, "b": 1}, ["b", "a"], ["a", "b"], None) == ["b", "a"]  # as asked


def test_values_that_are_no_classes_are_refused_by_name():
    with pytest.raises(UserError, match=r"skip\.y=-1 leaves them out, 'data\.labels=\[-1,0,1\]'"):
        check_classes(Counter({"-1": 3, "0": 5, "1": 5}), None, "y")
    check_classes(Counter({"-1": 3, "0": 5, "1": 5}), ["-1", "0", "1"], "y")
    check_classes(Counter({"-1": 3, "1": 5}), None, "y")
    with pytest.raises(UserError, match="all 3 rows have the label 'a'"):
        check_classes(Counter({"a": 3}), None, "y")
    with pytest.raises(UserError, match="1,001 different labels"):
        check_classes(Counter({str(number): 1 for number in range(1001)}), None, "y")
    with pytest.raises(UserError, match="values to predict"):
        check_classes(Counter({str(number / 7): 1 for number in range(40)}), None, "y")
    check_classes(Counter({str(number / 2): 1 for number in range(11)}), None, "stars")  # half stars


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_a_split_keeps_the_shares_of_labels(share):
    chance = random.Random(0)
    labels = chance.choices("abc", weights=[90, 9, 1], k=1000) + [f"rare{number % 60}" for number in range(90)]
    names = [f"rows.csv:{number}" for number in range(len(labels))]
    held = stratified(labels, names, share)
    alone = sum(count == 1 for count in Counter(labels).values())  # a class of one row is trained on
    assert 0 <= round(share * len(labels)) - len(held) <= share * alone
    found, every = Counter(labels[place] for place in held), Counter(labels)
    for label, count in every.items():
        assert abs(found[label] - share * count) <= 1 and found[label] < count
    assert held == stratified(labels, names, share)
    more = stratified([*labels, "a"], [*names, "rows.csv:1090"], share)
    assert len(held ^ more) <= 6  # a further row moves hardly any


def test_different_shares_are_reported():
    assert share_notes("ab" * 50, "ab" * 10) == []
    assert "every validation row has the label 'a'" in share_notes("ab" * 50, "a" * 10)[0]
    assert any("is 80% of validation" in note for note in share_notes("ab" * 500, "a" * 80 + "b" * 20))
    assert share_notes("ab" * 50, "aaab") == []  # chance
    (note,) = share_notes("ab" * 50, "abc" + "ab" * 10)
    assert note.startswith("1 label ('c') is only in validation")
    assert "2 labels ('c', 'd') are in no validation row" in share_notes("abcd" * 5, "ab" * 3)[0]


def test_text_of_values():
    assert as_text("x") == "x" and as_text(5) == "5" and as_text(None) is None and as_text(float("nan")) is None
    with pytest.raises(ValueError, match="list"):
        as_text(["a"])
    assert unescape(r"a\n\tb\\n\q") == "a\n\tb\\n\\q"


def test_templates():
    alpaca = Template(r"{instruction}\n{input}", "data.template")
    assert alpaca.columns == ("instruction", "input")
    assert alpaca.fill({"instruction": "Add", "input": "1 2"}) == "Add\n1 2"
    assert alpaca.fill({"instruction": "Add", "input": ""}) == "Add"
    assert alpaca.fill({"instruction": "Add", "input": None}) == "Add"
    assert alpaca.fill({"instruction": None, "input": None}) == ""
    framed = Template("Q: {q}\nContext: {c}\nAnswer:", "data.template")
    assert framed.fill({"q": 7, "c": "x"}) == "Q: 7\nContext: x\nAnswer:"
    assert framed.fill({"q": 7, "c": None}) == "Q: 7\nAnswer:"
    assert Template("{{{a}}}", "t").fill({"a": "x"}) == "{x}"
    for wrong in ("no column", "{}", "{a", "{a!r}", "{a:>3}"):
        with pytest.raises(UserError, match=r"data\.template"):
            Template(wrong, "data.template")
