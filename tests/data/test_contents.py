"""Damaged entries of the cache are found and rebuilt."""

import errno
import json
import os
import random
import shutil
from pathlib import Path

import pytest
from corpora import TEXTS, json_lines, made, tokens

from hfbsz.data import contents
from hfbsz.data import rows as module
from hfbsz.data.cache import cache_folder
from hfbsz.data.contents import Damaged, verify
from hfbsz.data.tokenizer.tokenizer import load_tokenizer, save_tokenizer
from hfbsz.errors import RankError


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A corpus and its entry, in blocks of 512 bytes, so that a small file has some that hold values alone."""
    folder = tmp_path_factory.mktemp("original")
    corpus = str(json_lines(folder / "x.jsonl"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFBSZ_CACHE", str(folder / "cache"))
        patch.setattr(contents, "BLOCK", 512)
        rows = made(files=corpus)
        return corpus, rows.tokenizer_path.parent, rows


@pytest.fixture
def entry(original, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "BLOCK", 512)
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(original[1], tmp_path / "cache" / original[1].name))


@pytest.fixture
def by_block(monkeypatch):
    """Arrow files are verified as their rows are read, as those of more than a GiB are."""
    monkeypatch.setattr(module, "_AT_ONCE", 0)


def values_of(rows):
    """The bytes of an Arrow file that hold a row's tokens in its middle, as (start, stop)."""
    row = rows[len(rows) // 2]
    start = row.ctypes.data - rows._begin
    return start, start + row.nbytes


def change(path, place, bits=1):
    content = bytearray(path.read_bytes())
    content[place] ^= bits
    path.write_bytes(content)


def assert_rebuilt(prepared, file, original):
    """Assert that an entry was rebuilt because of `file`, to the same rows and the same tokenizer."""
    assert prepared.notes[0] == f"the token cache was damaged ({file}): rebuilt"
    same(prepared, original)
    assert made(files=original[0]).notes == original[2].notes  # it is complete now


def same(prepared, original):
    first = original[2]
    assert tokens(prepared.train) == tokens(first.train) and tokens(prepared.validation) == tokens(first.validation)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (prepared.tokenizer_path / name).read_bytes() == (first.tokenizer_path / name).read_bytes()


@pytest.mark.parametrize("name", ["train", "validation"])
def test_case_d01_another_token_of_the_vocabulary_is_not_trained_on(original, entry, name):
    rows = original[2].train if name == "train" else original[2].validation
    change(entry / f"{name}.arrow", values_of(rows)[0])
    assert_rebuilt(made(files=original[0]), f"{name}.arrow", original)


def test_case_d02_a_damaged_tokenizer_is_not_saved_beside_a_model(original, entry):
    path = entry / "tokenizer" / "tokenizer.json"
    text = path.read_text()
    place = text.index('": 2') + len('": ')
    change(path, place)  # a digit of an id
    assert load_tokenizer(path.parent).get_vocab() != load_tokenizer(original[2].tokenizer_path).get_vocab()
    assert_rebuilt(made(files=original[0]), "tokenizer/tokenizer.json", original)


def write(name, content):
    return name, lambda path: path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("meta.json", lambda path: change(path, 0)),
        write("meta.json", b"[]"),
        ("meta.json", Path.unlink),
        write("contents.json", b"[]"),
        write("contents.json", b'{"files": [], "hash": 1}'),
        write("contents.json", b"\xff"),
        ("contents.json", Path.unlink),
        write("train.arrow", b""),
        ("train.arrow", lambda path: change(path, 33)),  # its header
        ("train.arrow", lambda path: os.truncate(path, path.stat().st_size // 2)),
        ("train.arrow", lambda path: (path.unlink(), path.mkdir())),
        ("train.arrow.blocks", lambda path: change(path, 8)),
        ("tokenizer/tokenizer.json", lambda path: path.write_text(path.read_text().replace("quick", "quack"))),
        ("tokenizer/tokenizer.json", lambda path: os.truncate(path, 5000)),
        write("tokenizer/added_tokens.json", b"{}"),  # a further file changes what is read of the folder
    ],
)
def test_case_d08_a_damaged_file_of_the_cache_is_rebuilt(original, entry, name, damage):
    damage(entry / name)
    assert_rebuilt(made(files=original[0]), name, original)


def test_a_bit_that_flips_is_found_or_harmless(original, entry, monkeypatch):
    """300 bits, each in any file of the entry; whether Arrow files are verified at once or as rows are read."""
    dice, first = random.Random(0), original[2]
    files = sorted(path for path in entry.rglob("*") if path.is_file())
    expected = [tokens(first.train), tokens(first.validation)]
    outcomes = {"found at opening": 0, "found at a row": 0, "harmless": 0}
    for number in range(300):
        path = dice.choice(files)
        content = path.read_bytes()
        change(path, dice.randrange(len(content)), 1 << dice.randrange(8))
        monkeypatch.setattr(module, "_AT_ONCE", 2**30 if number % 2 else 0)
        try:
            prepared = module._open(entry, module.Data(files=original[0]))
            read = [tokens(prepared.train), tokens(prepared.validation)]
            assert read == expected and prepared.manifest == first.manifest, path
            assert path.suffix == ".arrow" or path.name == "contents.json", path
            outcomes["harmless"] += 1
        except Damaged:
            outcomes["found at opening"] += 1
        except RankError:
            outcomes["found at a row"] += 1
        path.write_bytes(content)
        (entry / "damaged").unlink(missing_ok=True)
    print(outcomes)
    assert outcomes["harmless"] < 15 and outcomes["found at a row"] > 10, outcomes


def test_damage_that_a_row_meets_ends_the_rank_and_the_next_start_rebuilds(original, entry, by_block):
    rows = original[2].train
    start, middle = values_of(rows)[0], len(rows) // 2
    change(entry / "train.arrow", start)
    prepared = made(files=original[0])
    assert prepared.train[0].tolist() == rows[0].tolist() and prepared.notes == original[2].notes
    with pytest.raises(RankError) as caught:
        prepared.train[middle]
    assert caught.value.lines == (
        f"{entry}/train.arrow: damaged: block {start // 512} of 64 KiB, read for row {middle}: the same command "
        "rebuilds the file and resumes",
    )
    assert_rebuilt(made(files=original[0]), "train.arrow", original)


def test_damage_that_cannot_be_marked_is_reported_with_what_to_do(original, entry, by_block):
    rows = original[2].train
    change(entry / "train.arrow", values_of(rows)[0])
    prepared = made(files=original[0])
    (entry / "damaged").mkdir()  # cannot be written as a file
    with pytest.raises(RankError, match=f"delete {entry}, or set HFBSZ_CACHE: the same command rebuilds"):
        prepared.train[len(rows) // 2]


def test_what_is_not_a_rows_values_is_verified_at_opening(original, entry, by_block):
    size, (start, _) = (entry / "train.arrow").stat().st_size, values_of(original[2].train)
    for place in (33, start % 512, size - 600, size - 1):  # its header; the first block; offsets or bytes; its end
        whole = (entry / "train.arrow").read_bytes()
        change(entry / "train.arrow", place)
        with pytest.raises(Damaged, match=r"train\.arrow"):
            module._open(entry, module.Data(files=original[0]))
        (entry / "train.arrow").write_bytes(whole)


def test_only_the_first_process_of_a_machine_verifies_all_rows_at_once(original, entry, monkeypatch):
    for rank, whole in (("0", True), ("1", False)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert (made(files=original[0]).train._blocks is None) is whole


def test_the_tokenizer_of_the_rows_is_kept_with_them(original, entry, tmp_path):
    """Also where the folder that the recipe names changes while rows are made of it."""
    named = tmp_path / "named"
    shutil.copytree(original[2].tokenizer_path, named)
    (named / "chat_template.jinja").write_text("of the rows")
    changed = []

    def change_it(what, done, of):
        if not changed:
            changed.append((named / "tokenizer.json").write_text((named / "tokenizer.json").read_text()[:500]))

    prepared = module.prepare(
        module.Data(files=original[0], tokenizer=str(named), vocab_size=300, sequence_length=16), {}, change_it
    )
    assert changed and prepared.tokenizer_path == cache_folder() / prepared.tokenizer_path.parent.name / "tokenizer"
    loaded = load_tokenizer(prepared.tokenizer_path)
    assert loaded.chat_template == "of the rows"
    assert loaded.decode(prepared.train[0]) in loaded.eos_token.join(TEXTS)
    save_tokenizer(loaded, tmp_path / "saved")
    folders = (tmp_path / "saved", prepared.tokenizer_path)
    saved, cached = ((folder / "tokenizer.json").read_bytes() for folder in folders)
    assert saved == cached


def test_a_sector_that_cannot_be_read_is_damage(original, entry, monkeypatch):
    def broken(path):
        if path == entry / "meta.json":
            monkeypatch.undo()
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    real = contents._hash
    monkeypatch.setattr(contents, "_hash", broken)
    with pytest.raises(Damaged, match=r"meta\.json"):
        verify(entry)


def test_an_entry_of_json_that_is_no_contents_is_damaged(tmp_path):
    for content in ({}, {"files": {}}, {"files": None, "hash": None}, 1):
        (tmp_path / "contents.json").write_text(json.dumps(content))
        with pytest.raises(Damaged, match=r"contents\.json"):
            verify(tmp_path)
