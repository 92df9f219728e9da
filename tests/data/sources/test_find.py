"""The files that paths and globs match."""

import os
import shlex

import pytest
from source_reader import read, refused, texts

from hfbsz.data.sources.find import find_files
from hfbsz.recipe.load import load


@pytest.fixture
def folder(tmp_path):
    for name in ("a/x.txt", "a/b/y.txt", "c/z.txt", ".hidden/h.txt", "a/.h.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


def names(pattern, exclude=()) -> list[str]:
    return [file.name for file in find_files(str(pattern), exclude)[0]]


def test_names_are_paths_below_the_fixed_part(folder, monkeypatch):
    assert names(folder / "**/*.txt") == names(folder / "**") == ["a/b/y.txt", "a/x.txt", "c/z.txt"]
    assert names(folder / "a/**/*.txt") == ["b/y.txt", "x.txt"] and names(folder / "*/x.txt") == ["a/x.txt"]
    assert names(folder / "a/x.txt") == ["x.txt"] and names(folder / "**/b/*") == ["a/b/y.txt"]
    assert names(folder / "**/*.txt", exclude=["b"]) == ["a/x.txt", "c/z.txt"]
    monkeypatch.chdir(folder)
    assert names("**/*.txt") == ["a/b/y.txt", "a/x.txt", "c/z.txt"] and names("./a/../c/*.txt") == ["z.txt"]


@pytest.mark.parametrize("target", ["..", ".", "../a", "b/loop"])
def test_loops_of_links_are_not_followed(folder, target):
    before = names(folder / "**/*.txt")
    (folder / "a" / "b" / "loop").symlink_to(target, target_is_directory=True)
    (folder / "a" / "self").symlink_to("self")
    (folder / "c" / "gone.txt").symlink_to("nowhere")
    assert names(folder / "**/*.txt") == before


def test_links_out_of_the_folder_are_followed_once_and_links_back_are_not(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "o.txt").write_text("o")
    (other / "back").symlink_to(folder)
    (folder / "a" / "out").symlink_to(other)
    (folder / "zz.txt").symlink_to(other / "o.txt")
    assert names(folder / "**/*.txt") == ["a/b/y.txt", "a/x.txt", "c/z.txt", "zz.txt"]
    (folder / "zz.txt").unlink()
    assert "a/out/o.txt" in names(folder / "**/*.txt")


def test_a_file_and_a_link_to_it_are_listed_once_by_the_real_path(folder):
    (folder / "0").symlink_to("c")
    assert names(folder / "*/*.txt") == ["a/x.txt", "c/z.txt"]


@pytest.mark.parametrize("name", ["d[1].txt", "what?.txt", "a*.txt"])
def test_an_existing_path_with_wildcard_characters_is_that_file(tmp_path, name):
    inside = tmp_path / "run [v1]"
    inside.mkdir()
    for each in (name, "d1.txt", "whats.txt", "ab.txt"):
        (inside / each).write_text(each)
    assert names(inside / name) == [name] and texts(read(files=str(inside / name))[0])[0] == name
    assert len(names(inside / "*.txt")) == 4 and "d1.txt" in names(inside / "d[0-9].txt")


def test_case_15_the_home_folder(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    data = load(["data.files=~/a/*.txt", "eval.sets.other=~/c/z.txt", "data.validation_files=[~/c/z.txt]"]).recipe
    assert names(data.data.files) == ["x.txt"] and names(data.eval.sets["other"].files) == ["z.txt"]
    assert find_files(data.data.validation_files)[0][0].name == "z.txt"


def test_a_folder_is_refused_with_a_pattern_that_works(folder, tmp_path):
    line = refused(files=str(folder))
    assert "is a folder: name its files, 'data.files=" in line
    (folder / "t.csv").write_text("text,label\na,b\n")
    word = next(word for word in shlex.split(refused(files=str(folder))) if word.startswith("data.files=/"))
    assert word.endswith("**/*.csv") and texts(read(files=load([word]).recipe.data.files)[0]) == ["a"]


def test_the_folder_of_a_data_set_is_refused_with_the_hub_field(tmp_path):
    import datasets

    datasets.DatasetDict(train=datasets.Dataset.from_list([{"text": "a"}])).save_to_disk(tmp_path / "saved")
    line = refused(files=str(tmp_path / "saved"))
    assert f"data.hub={tmp_path / 'saved'} instead of data.files" in line
    assert texts(read(hub=str(tmp_path / "saved"))[0]) == ["a"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_an_unreadable_folder_gives_a_note(folder):
    (folder / "c").chmod(0)
    try:
        assert "c cannot be read: its files are left out" in find_files(str(folder / "**/*.txt"))[1][0]
    finally:
        (folder / "c").chmod(0o755)
