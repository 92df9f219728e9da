"""`scripts/pairs.py` makes pairs from conversations, which `task=preference` reads."""

import importlib.util
import json
import re

import pytest
from conftest import ROOT

from hfbsz.data.prepare.example_reader import Reader
from hfbsz.data.sources.sources import Opened, open_source
from hfbsz.recipe.load import load
from hfbsz.recipe.tasks import RowKind

spec = importlib.util.spec_from_file_location("pairs_script", ROOT / "scripts" / "pairs.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


@pytest.fixture
def conversations(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    path = tmp_path / "conversations.jsonl"
    turns = [["hello", f"hi {n}", "and now?", f"so {n // 2}", "x" * 400, "too late"] for n in range(8)]
    path.write_text("\n".join(json.dumps({"messages": row}) for row in turns))
    return ["recipe=tests/finetune.yaml", "task=instruction", "data.messages=messages", f"data.files={path}"]


def test_the_given_answer_is_chosen_and_its_words_in_another_order_rejected(tmp_path, capsys):
    path, out = tmp_path / "conversations.jsonl", tmp_path / "pairs.jsonl"
    answers = ["one two\nthree  four five", "too few words", "a a a a", "so many words in here"]
    path.write_text("\n".join(json.dumps({"messages": ["and?", answer]}) for answer in answers))
    words = ["recipe=tests/finetune.yaml", "task=instruction", "data.messages=messages", f"data.files={path}"]
    assert script.main([*words, f"out={out}"]) == 0 and capsys.readouterr().out == f"{out}: 2 pairs\n"
    before = out.read_text()
    for row, answer in zip(map(json.loads, before.splitlines()), (answers[0], answers[3]), strict=True):
        ((chosen,), (rejected,)) = row["chosen"], row["rejected"]
        assert chosen["content"] == answer != rejected["content"] and row["prompt"][0]["content"] == "and?"
        assert sorted(rejected["content"].split()) == sorted(answer.split())
        assert re.sub(r"\S+", "w", rejected["content"]) == re.sub(r"\S+", "w", answer)
    assert script.main([*words, f"out={out}"]) == 0 and out.read_text() == before


def test_the_given_answer_is_chosen_and_that_of_another_conversation_rejected(conversations, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
    conversations = [*conversations, "rejected=other"]
    assert script.main([*conversations, f"out={out}", "characters=100"]) == 0
    assert capsys.readouterr().out == f"{out}: 8 pairs\n"
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    for number, row in enumerate(rows):
        assert [m["content"] for m in row["prompt"]] == ["hello", f"hi {number}", "and now?"]
        assert row["chosen"] == [{"role": "assistant", "content": f"so {number // 2}"}]
        assert row["rejected"] == [{"role": "assistant", "content": f"so {(number + 4) % 8 // 2}"}]
    before = out.read_text()
    assert script.main([*conversations, f"out={out}", "characters=100"]) == 0 and out.read_text() == before
    recipe = load(["recipe=small_batch_preference", f"data.files={out}", "data.rows=null"]).recipe
    reader = Reader(RowKind.PREFERENCE, Opened(open_source(recipe.data), recipe.data))
    assert len(list(reader.examples(lambda *_: None))) == 8


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["characters=0"], "characters=0: not a whole number above 0"),
        (["characters=²"], "characters=²: not a whole number above 0"),
        (["characters=3"], "no conversation has an answer by then that gives a pair"),
        (["rejected=others"], "rejected=others: neither shuffled nor other"),
        (["task=classification", "data.messages=null", "data.label=x"], "task=classification: pairs are made from"),
        (["out=."], "out=.: this is a folder"),
        (["out=README.md"], "another file is there"),
    ],
)
def test_what_makes_no_pairs_is_refused(conversations, tmp_path, capsys, words, told):
    out = [] if words[0].startswith("out=") else [f"out={tmp_path / 'pairs.jsonl'}"]
    assert script.main([*conversations, *out, *words]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "pairs.jsonl").exists()
