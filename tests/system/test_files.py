"""Small files of a run, with untrusted content."""

import pytest

from hfbsz.errors import UserError
from hfbsz.records.folder import read_status
from hfbsz.records.jsonl import JsonLines
from hfbsz.records.record import Clock, Reading
from hfbsz.system.files import json_object, read_object, refuse_others, write_text
from hfbsz.system.yaml import read_yaml, write_yaml


def test_links_are_replaced_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for name in ("status.json", ".status.json.tmp", "recipe.yaml", ".recipe.yaml.tmp", "records.jsonl"):
        (tmp_path / name).symlink_to(victim)
    write_text(tmp_path / "status.json", "{}")
    write_yaml({"seed": 1}, tmp_path / "recipe.yaml")
    records = JsonLines(tmp_path / "records.jsonl")
    records.write(Reading("lifecycle", Clock(0, 0, 0, 0.0), {"state": "running"}))
    records.close()
    assert victim.read_text() == "precious" and read_yaml(tmp_path / "recipe.yaml") == {"seed": 1}
    assert not any((tmp_path / name).is_symlink() for name in ("status.json", "recipe.yaml", "records.jsonl"))


@pytest.mark.parametrize("text", ["[]", '"x"', "null", "3", "{", "", "[" * 10**5, '{"a":' * 10**5, "1" * 5000])
def test_anything_but_an_object_is_none(text, tmp_path):
    (tmp_path / "status.json").write_text(text)
    assert json_object(text) is None and read_object(tmp_path / "status.json") is None
    assert read_status(tmp_path) == {}


def test_fields_of_a_wrong_type_are_dropped_from_a_status(tmp_path):
    (tmp_path / "status.json").write_bytes(b"\xff\xfe")
    assert read_status(tmp_path) == {} == read_status(tmp_path / "none")
    (tmp_path / "status.json").write_text('{"state": ["finished"], "why": 3, "pid": "x", "reached": [], "step": 7}')
    assert read_status(tmp_path) == {"step": 7}


def test_a_file_of_others_is_not_replaced(tmp_path):
    path = tmp_path / "x"
    refuse_others("out", path, b"ours")
    for content in (b"", b"this is ours"):
        path.write_bytes(content)
        refuse_others("out", path, b"ours")
    path.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(path)
    for existing, message in ((path, "another file"), (tmp_path / "link", "another file"), (tmp_path, "a folder")):
        with pytest.raises(UserError, match=message):
            refuse_others("out", existing, b"ours")
    assert path.read_bytes() == b"precious"
