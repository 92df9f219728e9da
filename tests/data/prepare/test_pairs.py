"""Preference pairs: what is read as the prompt and its two answers, what is learned, and what is left out."""

import json

import numpy as np
import pytest

from hfbsz.data import IGNORED
from hfbsz.data.chat.template import TEMPLATE
from hfbsz.data.preview import preview
from hfbsz.data.rows import Pair, prepare
from hfbsz.data.tokenizer.tokenizer import load_tokenizer, train_tokenizer
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Data, EvalSet
from hfbsz.recipe.tasks import RowKind

COLUMNS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    tokenizer = train_tokenizer(["what is it? it is a fine thing, it is not so fine. " * 40], 300)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def texts(count=40):
    return [
        {"prompt": f"what is {n}?", "chosen": f"it is {n} " * (1 + n % 3), "rejected": f"not {n}"} for n in range(count)
    ]


def made(folder, rows, sets=None, **fields):
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    defaults = {**COLUMNS, "pack": False, "validation": "20%", "sequence_length": 60,
                "tokenizer": str(folder / "tokenizer"), "files": str(path)}  # fmt: skip
    return prepare(Data(**{**defaults, **fields}), sets or {}, lambda *_: None, kind=RowKind.PREFERENCE)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def sides(data, rows=None):
    """For every row the learned and the other text of both sides."""
    tokenizer = load_tokenizer(data.tokenizer_path)
    found = []
    for row in (data.train[n] for n in range(len(data.train))) if rows is None else rows:
        pair = []
        for side in (row.chosen, row.rejected):
            learned = side.labels != IGNORED
            assert (side.labels[learned] == side.tokens[learned]).all()
            pair.append((tokenizer.decode(side.tokens[~learned]), tokenizer.decode(side.tokens[learned])))
        found.append(pair)
    return found


def test_a_pair_is_one_row_of_two_sequences(folder):
    data = made(folder, texts())
    counts = data.manifest.train
    assert counts.rows == len(data.train) == counts.targets and len(data.train) + len(data.validation) == 40
    seen = set()
    for row, ((prompt, chosen), (same, rejected)) in zip(
        (data.train[n] for n in range(len(data.train))), sides(data), strict=True
    ):
        assert isinstance(row, Pair) and row.reference is None and row.chosen.tokens.dtype == np.int32
        number = prompt.partition("what is ")[2].partition("?")[0]
        assert prompt == same == f"User: what is {number}?\nAssistant:"
        assert chosen.strip().startswith(f"it is {number}") and rejected.strip().startswith(f"not {number}")
        assert chosen.endswith("<|endoftext|>\n") and rejected.endswith("<|endoftext|>\n")
        seen.add(number)
    assert len(seen) == len(data.train)
    lengths = [[len(side.tokens) for side in data.train[n][:2]] for n in range(len(data.train))]
    assert data.train.lengths.tolist() == [2 * max(pair) for pair in lengths]
    assert data.facts.tokens_per_row == pytest.approx(np.mean([sum(pair) for pair in lengths]))


def test_every_form_gives_the_same_rows(folder):
    """TRL's forms: texts, messages after a prompt of messages, and whole conversations with a common beginning."""
    rows = texts()
    messages = [
        {"prompt": [user(r["prompt"])], "chosen": [assistant(r["chosen"])], "rejected": [assistant(r["rejected"])]}
        for r in rows
    ]
    whole = [{name: [*m["prompt"], *m[name]] for name in ("chosen", "rejected")} for m in messages]
    forms = [
        made(folder, rows),
        made(folder, messages),
        made(folder, whole, prompt=None),
        made(folder, [{"question": r["prompt"], **r} for r in rows], prompt=None, template="{question}"),
        made(folder, [{name: json.dumps(side) for name, side in m.items()} for m in messages]),
    ]
    assert len({data.manifest.data_hash for data in forms}) == 1


def test_only_what_follows_the_common_beginning_is_learned(folder):
    start = [{"role": "system", "content": "be so kind"}, user("what is 1?"), assistant("it is a thing"), user("so?")]
    rows = [
        {"chosen": [*start, assistant(f"fine {n}"), user("is it?"), assistant("it is")],
         "rejected": [*start, assistant(f"it is not {n}")]}
        for n in range(20)
    ]  # fmt: skip
    data = made(folder, rows, prompt=None, sequence_length=120)
    for (context, chosen), (prompt, rejected) in sides(data):
        assert "it is a thing" in context and "is it?" in context and "it is a thing" in prompt
        assert "fine" in chosen and chosen.endswith("it is<|endoftext|>\n") and rejected.startswith(" it is not")
    last = made(folder, rows, prompt=None, sequence_length=120, answers="last")
    assert all(chosen == " it is<|endoftext|>\n" for (_, chosen), _ in sides(last))
    system = made(folder, [{**row, "system": "be so kind"} for row in texts()], system="system")
    assert all(prompt.startswith("System: be so kind\n") for (prompt, _), _ in sides(system))


def test_pairs_of_no_use_are_left_out_and_counted(folder):
    bad = [
        {"prompt": "what is x?", "chosen": "the same", "rejected": "the same"},
        {"prompt": "what is y?", "chosen": "", "rejected": "it is"},
        {"prompt": "what is z?", "chosen": "it is", "rejected": None},
        {"prompt": "what is " * 80, "chosen": "it is", "rejected": "not"},
        {"prompt": "what is it?", "chosen": "it is " * 80 + "a", "rejected": "it is " * 80 + "b"},
        {"prompt": "What is  1?", "chosen": "it is 1 it is 1", "rejected": "not 1"},
    ]
    data = made(folder, [*texts(), *bad], validation_files=str(_others(folder)))
    told = "\n".join(data.notes)
    for line in (
        "1 row left out: chosen and rejected are the same",
        "1 row left out: no chosen answer to learn",
        "1 row left out: no rejected answer to learn",
        "2 training rows longer than data.sequence_length=60 tokens: cut there",
        "1 training row without an answer before that: left out",
        "1 training row whose answers are the same up to there: left out",
        "1 training row with the text of an earlier one: dropped",
    ):
        assert line in told
    assert len(data.train) == 40


def _others(folder):
    path = folder / "others.jsonl"
    path.write_text("\n".join(json.dumps({**row, "prompt": f"so {row['prompt']}"}) for row in texts(10)))
    return path


@pytest.mark.parametrize(
    ("row", "fields", "told"),
    [
        ({"prompt": "p", "chosen": 1.5, "rejected": True}, {}, "the response is True, not text"),
        ({"prompt": "p", "chosen": [user("q"), assistant("a")], "rejected": "b"}, {}, "it holds its prompt itself"),
        ({"chosen": "a text", "rejected": "another"}, {"prompt": None}, "name the column of its prompt in data.prompt"),
        (
            {"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("d")]},
            {"prompt": None},
            "begin with different messages",
        ),
        ({"prompt": "p", "chosen": [{"say": "a"}], "rejected": "b"}, {}, "messages must hold role and content"),
    ],
)  # fmt: skip
def test_rows_that_are_no_pairs_are_refused_by_name(folder, row, fields, told):
    with pytest.raises(UserError) as caught:
        made(folder, [*([] if fields else texts()), row], **fields)
    assert told in caught.value.lines[0] and "row" in caught.value.lines[0]


def test_a_template_that_rewrites_earlier_answers_is_refused_for_pairs_of_several_answers(folder):
    tokenizer = load_tokenizer(folder / "tokenizer")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' and loop.last %}<think> {% endif %}"
        "{{ m['content'] }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.save_pretrained(folder / "tokenizer")
    rows = [
        {"chosen": [user(f"what is {n}?"), assistant("it is"), user("so?"), assistant("fine")],
         "rejected": [user(f"what is {n}?"), assistant("not so")]}
        for n in range(20)
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"data\.answers=last"):
        made(folder, rows, prompt=None)
    assert len(made(folder, rows, prompt=None, answers="last").train)


def test_evaluation_sets_and_groups_and_a_preview(folder):
    path = folder / "more.jsonl"
    renamed = ({"q": row["prompt"], "a": row["chosen"], "b": row["rejected"]} for row in texts(5))
    path.write_text("\n".join(map(json.dumps, renamed)))
    rows = [{**row, "film": str(n // 4)} for n, row in enumerate(texts())]
    data = made(folder, rows, {"more": EvalSet(files=str(path), prompt="q", chosen="a", rejected="b")}, group="film")
    assert len(data.sets["more"]) == 5 and any("that training has too" in note for note in data.notes)
    films = [
        {int(prompt.partition("what is ")[2].partition("?")[0]) // 4 for (prompt, _), _ in sides(data, part)}
        for part in ([data.train[n] for n in range(len(data.train))],
                     [data.validation[n] for n in range(len(data.validation))])
    ]  # fmt: skip
    assert films[0] and films[1] and not films[0] & films[1]
    shown = preview(data, load_tokenizer(data.tokenizer_path), 1)
    line = shown.rows[0].line()
    assert line.startswith("User: what is ") and "Assistant:⟦ it is " in line and "⏎⟧ rather than ⟦ not " in line
    assert shown.to_dict()["rows"][0]["rejected"].startswith(" not ")
