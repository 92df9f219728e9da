"""A whole run and Weights & Biases: one run, the keys and values of records.jsonl, no fault that reaches training."""

import json
import math

import pytest
from conftest import TINY
from wandb_reader import read_run

from hfbsz.folder import read_status


def lines(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("processes", [1, 2])
def test_the_offline_run_is_records_jsonl(hfbsz, ragged, tmp_path, processes):
    run = tmp_path / "run"
    words = [TINY, f"data.files={ragged}", f"output_dir={run}", "log.wandb=offline", "log.group=a test"]
    ended = hfbsz("pretrain.py", *words, processes=processes)
    assert ended.code == 0, ended.err
    (folder,) = (run / "wandb").glob("offline-run-*")  # one run, not one for each rank
    logged = read_run(folder)
    written = lines(run)
    assert len(logged.history) == len(written) == 50 + 3 + 2 + 4  # steps, evaluations, states, checkpoints
    for theirs, ours in zip(logged.history, written, strict=True):
        theirs = {name: value for name, value in theirs.items() if not name.startswith("_")}
        assert theirs.keys() == ours.keys()
        assert all(
            theirs[name] == value or math.isclose(theirs[name], value, rel_tol=0) for name, value in ours.items()
        )
    assert (logged.group, logged.job_type) == ("a test", "pretrain") and logged.name.startswith(
        "llama-own-b8-lr0.003-s0"
    )
    assert logged.config["plan"]["steps"] == 50 and logged.config["recipe"]["optim"]["lr"] == 0.003


def test_a_server_that_is_down_costs_a_warning(hfbsz, ragged, tmp_path):
    run = tmp_path / "run"
    env = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    ended = hfbsz(
        "pretrain.py", TINY, f"data.files={ragged}", f"output_dir={run}", "log.wandb=online", plain=True, env=env
    )
    assert ended.code == 0 and read_status(run)["state"] == "finished"
    assert ended.out.count("warning: ") == 1 and "Traceback" not in ended.err
    assert len(lines(run)) == 59
