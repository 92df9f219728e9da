"""A global batch gives the same gradients and training run however it is split: through the real command line."""

import numpy as np
import pytest
from conftest import ROOT, TINY, records
from safetensors.numpy import load_file

SPLITS = {"4x2": (4, 1), "2x4": (2, 1), "1x8": (1, 1), "2 ranks of 4x1": (4, 2), "2 ranks of 2x2": (2, 2)}


@pytest.fixture(scope="module")
def train(hfbsz, ragged, tmp_path_factory):
    def run(micro, processes=1, precision="fp64", script="pretrain.py", more=()):
        folder = tmp_path_factory.mktemp("run") / "run"
        words = [
            TINY,
            f"data.files={ragged}",
            f"batch.micro_max={micro}",
            f"precision={precision}",
            f"output_dir={folder}",
            *more,
        ]
        ended = hfbsz(script, *words, processes=processes)
        assert ended.code == 0, ended.err
        return folder

    return run


@pytest.fixture(scope="module")
def unsplit(train):
    return train(8)


def deviation(one, other, steps=50) -> float:
    """The largest relative difference of losses and gradient norms in the first steps."""
    first, second = records(one, "step")[:steps], records(other, "step")[:steps]
    assert len(first) == len(second) == steps
    return max(
        abs(a[name] - b[name]) / abs(b[name])
        for a, b in zip(first, second, strict=True)
        for name in ("train/loss", "train/grad_norm")
    )


@pytest.mark.parametrize("split", SPLITS)
def test_a_split_changes_nothing(train, unsplit, split):
    """float64: 50 steps from initialization to 1e-9."""
    micro, processes = SPLITS[split]
    folder = train(micro, processes)
    step = records(folder, "step")[0]
    assert (step["batch/micro"], step["batch/accumulation"]) == (micro, 8 // micro // processes)
    assert deviation(folder, unsplit) < 1e-9
    ours, theirs = (load_file(path / "model.safetensors") for path in (folder, unsplit))
    for name, weight in theirs.items():
        assert np.linalg.norm(ours[name] - weight) <= 1e-9 * np.linalg.norm(weight)
    ends = [records(path, "eval")[-1]["eval/loss"] for path in (folder, unsplit)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-9)  # evaluated with other micro-batches and ranks


@pytest.fixture(scope="module")
def by_length(train):
    return train(8, more=["batch.by_length=true"])


@pytest.mark.parametrize("processes", [1, 2])
def test_rows_of_like_length_and_micro_batches_of_tokens_change_nothing(train, by_length, processes):
    """float64, 50 steps to 1e-9, on two processes that make different numbers of passes."""
    folder = train(8, processes, more=["batch.by_length=true", "batch.micro_tokens=150"])
    assert deviation(folder, by_length) < 1e-9
    steps = records(folder, "step")
    assert all(step["batch/global"] == 8 and 0 <= step["batch/padding"] < 1 for step in steps)
    assert len({step["batch/accumulation"] for step in steps}) > 1  # short rows fill a pass in greater numbers
    assert [s["train/num_input_tokens_seen"] for s in steps] == [
        s["train/num_input_tokens_seen"] for s in records(by_length, "step")
    ]


def test_float32_holds_the_first_steps(train):
    assert deviation(train(2, precision="fp32"), train(8, precision="fp32"), steps=10) < 1e-5


def test_the_mean_of_means_is_detected(train, unsplit):
    """The same run with the mean of each micro-batch, a common mistake, must fail the test above."""
    folder = train(2, script=str(ROOT / "tests" / "mean_of_means.py"))
    assert deviation(folder, unsplit) > 1e-3
