"""Which line comes next: the examples are the same every time, and no run over the corpus trains on them."""

import json

import pytest

from hfbsz.data.next_line import CHOICES, CONTEXT, examples, examples_file
from hfbsz.data.prepare.documents import Documents, split_sections
from hfbsz.data.sources.sources import Opened, open_source
from hfbsz.recipe.fields import Data


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFBSZ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield examples_file()


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_examples_are_questions_with_one_answer(path):
    found = read(path)
    assert len(found) > 200 and len({example["context"] for example in found}) > 0.95 * len(found)
    for example in found:
        assert len(example["choices"]) == len(set(example["choices"])) == CHOICES
        assert 0 < len(example["context"]) <= CONTEXT and all(choice[0] == "\n" for choice in example["choices"])
        indentations = {len(choice) - len(choice.lstrip()) for choice in example["choices"]}
        assert len(indentations) == 1  # the indentation gives nothing away
    places = [example["answer"] for example in found]
    assert all(0.15 < places.count(place) / len(places) < 0.35 for place in range(CHOICES))


def test_they_are_the_same_again_and_are_read_from_the_cache(path, monkeypatch, tmp_path):
    before = path.stat().st_mtime_ns
    monkeypatch.setenv("HFBSZ_CACHE", str(path.parent.parent))
    assert examples_file() == path and path.stat().st_mtime_ns == before
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path))
    assert examples_file().read_bytes() == path.read_bytes()


def test_no_run_trains_on_them(path):
    """Each answer follows its context in a section that the smallest share holds out."""
    data = Data()
    split = split_sections(Documents(Opened(open_source(data), data)), 0.01)
    held = [document.text for document, is_held in split if is_held]
    for example in read(path):
        text = example["context"] + example["choices"][example["answer"]]
        assert any(text in "\n".join(line.rstrip() for line in section.splitlines()) or text in section
                   for section in held), text  # fmt: skip
    trained = {document.text for document, is_held in
               split_sections(Documents(Opened(open_source(data), data)), 0.05) if not is_held}  # fmt: skip
    assert not any(section in trained for section in held)


def test_sections_without_alike_lines_give_no_examples():
    assert list(examples(iter(["a = 1\n" * 20, "b\n"]))) == []
