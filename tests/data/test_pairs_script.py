"""`scripts/pairs.py` makes pairs from conversations, which `task=preference` reads."""

import importlib.util
import json

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


def test_the_given_answer_is_chosen_and_that_of_another_conversation_rejected(conversations, tmp_path, capsys):
    out = tmp_path / "pairs.jsonl"
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
        (["characters=3"], "fewer than two conversations have different answers by then"),
        (["task=classification", "data.messages=null", "data.label=x"], "task=classification: pairs are made from"),
        (["out=."], "out=.: this is a folder"),
        (["out=README.md"], "another file is there"),
    ],
)
def test_what_makes_no_pairs_is_refused(conversations, tmp_path, capsys, words, told):
    out = [] if words[0].startswith("out=") else [f"out={tmp_path / 'pairs.jsonl'}"]
    assert script.main([*conversations, *out, *words]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "pairs.jsonl").exists()
