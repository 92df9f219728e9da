import json
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from hfbsz.data.batches import Windows, evaluation_batches
from hfbsz.data.prepare.documents import Document, split_tail
from hfbsz.data.rows import cache_folder, prepare
from hfbsz.data.sources.sources import find_files
from hfbsz.data.tokenizer.tokenizer import load_tokenizer
from hfbsz.errors import UserError
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.fields import Data, EvalSet
from hfbsz.recipe.load import load
from hfbsz.train.tasks.language_modeling import IGNORED, LanguageModeling


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))


def made(**fields):
    return prepare(Data(**{"vocab_size": 300, "sequence_length": 16, **fields}), {}, lambda *_: None)


def write(folder, count, size=200):
    for number in range(count):
        (folder / f"{number:03}.txt").write_text(f"document {number}: " + "the quick brown fox. " * (size // 20))
    return str(folder / "*.txt")


def test_packed_rows_predict_every_token_once(tmp_path):
    data = made(files=write(tmp_path, 40), validation="20%")
    rows = [data.train[i].tolist() for i in range(len(data.train))]
    assert {len(row) for row in rows} == {17}
    assert all(a[-1] == b[0] for a, b in pairwise(rows))
    tokenizer = load_tokenizer(data.tokenizer_path)
    text = tokenizer.decode(rows[0][:1] + [token for row in rows for token in row[1:]])
    assert text.count("<|endoftext|>") >= data.manifest.train.documents - 1
    validation = data.validation
    targets = sum(len(validation[i]) - 1 for i in range(len(validation)))
    assert targets == data.manifest.validation.tokens - 1  # includes the last, shorter row
    assert validation.text_bytes.sum() == pytest.approx(data.manifest.validation.bytes, rel=0.01)


def test_ragged_rows_hold_one_document_each(tmp_path):
    path = tmp_path / "x.jsonl"
    texts = [f"{number} " + "ab " * (number % 30 + 1) for number in range(100)]
    path.write_text("\n".join(json.dumps({"body": text}) for text in texts))
    data = made(files=str(path), text="body", pack=False, validation="10%")
    assert data.facts.tokens_per_row == pytest.approx(np.mean([len(data.train[i]) - 1 for i in range(len(data.train))]))
    pieces = sum(len(data.train[i]) - 1 for i in range(len(data.train)))
    assert pieces == data.manifest.train.tokens - data.manifest.train.documents


def test_validation_is_disjoint_stable_and_by_name(tmp_path):
    pattern = write(tmp_path, 60)
    first = made(files=pattern, validation="20%").manifest
    (tmp_path / "zzz.txt").write_text("a new document. " * 20)
    second = made(files=pattern, validation="20%").manifest
    documents = [each.train.documents + each.validation.documents for each in (first, second)]
    assert documents == [60, 61] and 4 <= first.validation.documents <= 20
    assert second.validation.documents - first.validation.documents in (0, 1)


def test_few_documents_hold_out_their_tail_with_a_note(tmp_path):
    data = made(files=write(tmp_path, 3, 4000), validation="10%")
    assert "validation is the last 10% of the text" in data.notes[0]
    documents = [Document("a", "x\n" * 50), Document("b", "y\n" * 50)]
    train, tail = ([d for d, held in split_tail(documents, 200, 0.25) if held == tailed] for tailed in (False, True))
    assert "".join(d.text for d in train + tail) == "".join(d.text for d in documents)
    assert sum(len(d.text) for d in tail) == 50 and tail[0].text[0] == "y"


def test_a_tail_is_cut_at_a_line_only_where_one_is_near():
    (train, _), (tail, _) = split_tail([Document("a", "Title\n" + "x" * 4000)], 4006, 0.05)
    assert len(tail.text) == 200 and len(train.text) == 3806


def test_the_second_time_comes_from_the_cache_and_new_text_does_not(tmp_path):
    pattern = write(tmp_path, 30)
    made(files=pattern)
    entries = [path for path in cache_folder().iterdir() if path.is_dir()]
    stamp = (entries[0] / "train.arrow").stat().st_mtime_ns
    made(files=pattern)
    assert len(entries) == 1 and (entries[0] / "train.arrow").stat().st_mtime_ns == stamp
    (tmp_path / "000.txt").write_text("another text")
    made(files=pattern)
    assert len([path for path in cache_folder().iterdir() if path.is_dir()]) == 2


def test_json_lines_end_at_newlines_alone_and_half_surrogates_are_no_text(tmp_path):
    lines = [json.dumps({"text": f"one\u2028two\x85three {number} " * 5}, ensure_ascii=False) for number in range(30)]
    (tmp_path / "x.jsonl").write_text("\n".join([*lines, '{"text": "half \\ud83d of a pair"}']))
    counts = made(files=str(tmp_path / "x.jsonl"), validation="20%").manifest
    assert counts.train.documents + counts.validation.documents == 31


def test_no_name_of_an_evaluation_set_touches_the_training_rows(tmp_path):
    pattern = write(tmp_path, 30)
    (tmp_path / "other.md").write_text("another text. " * 50)
    data = Data(files=pattern, vocab_size=300, sequence_length=16)
    prepared = prepare(data, {"train": EvalSet(files=str(tmp_path / "other.md"))}, lambda *_: None)
    assert list(prepared.evaluation_sets()) == [None, "train"] and prepared.manifest.sets["train"].documents == 1
    assert len(prepared.train) == len(prepare(data, {}, lambda *_: None).train)


def test_a_set_has_a_text_column_of_its_own_and_another_column_is_other_rows(tmp_path):
    pattern = write(tmp_path, 30)
    rows = [{"body": f"{number} another text", "head": "short"} for number in range(9)]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = Data(files=pattern, vocab_size=300, sequence_length=16)

    def entries():
        return [path for path in cache_folder().iterdir() if path.is_dir()]

    def bytes_of(**fields):
        sets = {"other": EvalSet(files=str(tmp_path / "other.jsonl"), **fields)}
        return prepare(data, sets, lambda *_: None).manifest.sets["other"].bytes

    assert bytes_of(text="body") == sum(len(row["body"]) for row in rows) > bytes_of(text="head") == 45
    assert (
        bytes_of(text="head", skip={}) == 45 and len(entries()) == 2
    )  # fields equal to those of data make no other rows
    with pytest.raises(UserError, match=r"no column 'text' \(eval.sets.other.text\); there are 'body', 'head'"):
        bytes_of()
    (tmp_path / "other.jsonl").write_text('{"body": "x", "head": "a word"}')
    assert bytes_of(text="head") == 6


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\x9cbinary", "not UTF-8 text"),
        ("a.txt", b"text\0text", "NUL bytes"),
        ("a.txt", b"", "holds no text"),
        ("a.txt", b"too short", "fewer than one row"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ', "a.jsonl:2: not JSON"),
        ("a.jsonl", b'{"body": "x"}', "a.jsonl:1: no column 'text' (data.text); there are 'body'"),
        ("a.jsonl", b'["x"]', "not an object with columns but an array"),
    ],
)
def test_files_that_are_no_corpus(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        made(files=str(tmp_path / name))
    assert message in caught.value.lines[0] and len(caught.value.lines) == 1
    assert not [path for path in cache_folder().iterdir() if path.is_dir()]  # no incomplete entries


def test_a_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "corpus.txt").write_text("x")
    with pytest.raises(UserError, match=r"no file matches .*did you mean 'corpus.txt'"):
        find_files(str(tmp_path / "corpsu.txt"))


def test_no_disk_space_for_the_cache(tmp_path):
    """On a file system of 200 kB, in a separate mount namespace."""
    pattern, small = write(tmp_path, 30, 20_000), tmp_path / "small"
    small.mkdir()
    script = (
        "import hfbsz.data.rows as rows\nfrom hfbsz.recipe.fields import Data\n"
        "import sys\n"
        "if sys.argv[1] == 'unchecked': rows._check_space = lambda *_: None\n"
        f"try: rows.prepare(Data(files={pattern!r}, vocab_size=300), {{}}, lambda *_: None)\n"
        "except rows.UserError as problem: print(problem)\n"
        f"import os; print([name for name in os.listdir({str(small)!r}) if not name.endswith('.lock')])\n"
    )
    command = f'mount -t tmpfs -o size=200k none {small} && HFBSZ_CACHE={small} {sys.executable} -c "$0" $1'
    for mode in ("checked", "unchecked"):  # refused beforehand; or the disk fills up while writing
        done = subprocess.run(["unshare", "-rm", "sh", "-c", command, script, mode], capture_output=True, text=True)
        if "unshare" in done.stderr or "mount" in done.stderr:
            pytest.skip(f"no mount namespace here: {done.stderr.strip()}")
        line, left = done.stdout.strip().splitlines()
        assert "no disk space left" in line and "HFBSZ_CACHE" in line and left == "[]", done


def test_a_step_takes_the_same_rows_on_any_number_of_ranks(tmp_path):
    data = made(files=write(tmp_path, 60))
    recipe = load(
        ["batch.ramp=0:4 40%:8 70%:16", "duration=300seq", "data.sequence_length=16", "batch.micro_max=2"]
    ).recipe
    seen = []
    for world in (1, 2, 4):
        plan = resolve(recipe, world, data.facts)
        collate = LanguageModeling(0).collate
        ranks = [Windows(data.train, plan, collate, rank, world) for rank in range(world)]
        steps = []
        for planned in plan.walk():
            batches = [batch for rank in ranks for batch in rank.window(planned)]
            assert all(len(batch.labels) == plan.micro_batch for batch in batches)
            steps.append(sorted(tuple(row) for batch in batches for row in batch.labels.tolist()))
        seen.append(steps)
    assert seen[0] == seen[1] == seen[2]


def test_an_evaluation_counts_every_row_once_and_gives_ranks_equal_passes(tmp_path):
    rows, numbers = made(files=write(tmp_path, 40)).train, range(11)
    for micro, world in ((1, 1), (4, 1), (3, 2), (8, 4)):
        shares = [
            list(evaluation_batches(rows, numbers, micro, LanguageModeling(0).collate, rank, world))
            for rank in range(world)
        ]
        assert len({len(share) for share in shares}) == 1
        counted = sum(int((batch.labels != IGNORED).sum()) for share in shares for batch in share)
        assert counted == sum(batch.targets for share in shares for batch in share) == 11 * 16
