"""Five tiny runs reproduce the reference values that `python tests/golden.py` wrote."""

import json
import signal

import pytest
from golden import GOLDEN, NUMBERS, RUNS, machine, numbers_of, write_inputs
from test_resume import Started


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_reproduces_its_reference(hfbsz, inputs, environment, fork_server, tmp_path, name):
    words, processes = RUNS[name]
    words, run = [*words, *inputs], tmp_path / "run"
    if name == "resumed":
        first = Started(run, environment, *words, server=fork_server)
        first.wait_for(lambda: (run / "checkpoint-10").is_dir())
        first.end(signal.SIGKILL)
    script = "finetune.py" if "task=classification" in words else "pretrain.py"
    ended = hfbsz(script, *words, f"output_dir={run}", processes=processes)
    assert ended.code == 0, ended.err
    assert ("resumes from" in ended.out) == (name == "resumed")
    expected, actual = json.loads(GOLDEN.read_text())[name], numbers_of(run)
    for number in NUMBERS:
        assert actual[number] == pytest.approx(expected[number], rel=1e-9), number
    if machine() in expected["weights"]:
        assert actual["weights"] == expected["weights"]
