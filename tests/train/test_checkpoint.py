"""Checkpoints are complete or absent, and restore exactly what was saved."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from test_loop import Bench, _here  # noqa: F401  (the fixture sets the cache folder)

from hfbsz.errors import UserError
from hfbsz.records.jsonl import trim
from hfbsz.train.checkpoint import collect, forget_after, newest, prune, read, restore, save, steps
from hfbsz.train.progress import Progress

RATES = {"adamw": 3e-3, "sgd": 0.1, "lamb": 1e-2, "muon": 3e-3, "adafactor": 3e-2, "schedule_free": 3e-3}


@pytest.mark.parametrize("name", RATES)
def test_a_resumed_run_is_bit_identical(ragged, tmp_path, name):
    """Every optimizer, with dropout, resumed in the middle of a ramp and of an interval between two records."""
    words = [f"optim.name={name}", f"optim.lr={RATES[name]}", "model=tiny_gpt2", "model.shape.resid_pdrop=0.1"]
    words += ["model.shape.n_embd=32", "model.shape.n_layer=2", "model.shape.n_head=2"]
    words += ["batch.size=null", "batch.ramp=0:4 30%:8 60%:16", "duration=30steps", "log.every=4steps"]
    unbroken, first, second = (Bench(ragged, *words) for _ in range(3))
    expected = list(unbroken.steps())
    progress = Progress(first.accelerator.device)
    for step in first.steps(progress=progress):
        if step.at.step == 14:
            break
    path = save(
        tmp_path, 14, collect(first.model, first.optimizer), {"progress": progress.to_dict([progress.loss.item()])}
    )
    checkpoint = read(path)
    restore(checkpoint, second.model, second.optimizer)
    resumed = list(second.steps(progress=Progress(second.accelerator.device, checkpoint.state["progress"])))
    assert [step.at.step for step in resumed] == [step.at.step for step in expected[14:]]
    for one, other in zip(resumed, expected[14:], strict=True):
        assert (one.at.sequences, one.at.tokens, one.loss, one.grad_norm, one.skipped) == (
            other.at.sequences, other.at.tokens, other.loss, other.grad_norm, other.skipped,
        )  # fmt: skip
    weights = zip(second.model.parameters(), unbroken.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in weights)


def test_the_decisions_of_an_adaptive_ramp_are_restored(ragged, tmp_path):
    """Decided before the checkpoint, applied after it: the same batches."""

    def batches(bench, progress, until):
        sizes = []
        for step in bench.steps(progress=progress):
            sizes.append(step.global_batch)
            if step.at.step == 4:
                progress.decisions.append((step.at.sequences, 16))
            if step.at.step == until:
                break
        return sizes

    unbroken, first, second = (Bench(ragged, "duration=20steps") for _ in range(3))
    expected = batches(unbroken, Progress(unbroken.accelerator.device), 100)
    progress = Progress(first.accelerator.device)
    before = batches(first, progress, 7)
    state = {"progress": progress.to_dict([progress.loss.item()])}
    checkpoint = read(save(tmp_path, 7, collect(first.model, first.optimizer), state))
    restore(checkpoint, second.model, second.optimizer)
    after = batches(second, Progress(second.accelerator.device, checkpoint.state["progress"]), 100)
    assert before + after == expected and expected[3:6] == [8, 16, 16]
    assert all(map(torch.equal, second.model.parameters(), unbroken.model.parameters()))


@pytest.fixture
def saved(ragged, tmp_path):
    """Three checkpoints of a run."""
    bench = Bench(ragged)
    for step in bench.steps():
        if step.at.step % 2 == 0:
            save(tmp_path, step.at.step, collect(bench.model, bench.optimizer), {"progress": {"step": step.at.step}})
        if step.at.step == 6:
            return tmp_path


def test_a_damaged_checkpoint_is_reported_and_skipped(saved):
    warnings = []
    assert newest(saved, warnings.append).path.name == "checkpoint-6" and not warnings
    weights = saved / "checkpoint-6" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    (saved / "checkpoint-4" / "complete.json").unlink()
    (saved / "checkpoint-best").mkdir()
    assert newest(saved, warnings.append).path.name == "checkpoint-2"
    assert "checkpoint-6: model.safetensors is damaged: skipped" in warnings[0] and "checkpoint-4" in warnings[1]
    (saved / "checkpoint-2" / "state.json").write_text("{")
    assert newest(saved, warnings.append) is None
    with pytest.raises(UserError, match="is damaged"):
        read(saved / "checkpoint-2")


def test_the_newest_are_retained_and_no_file_can_run_code(saved):
    prune(saved, 2)
    assert steps(saved) == [6, 4]
    names = {path.suffix for path in (saved / "checkpoint-6").iterdir()}
    assert names == {".json", ".safetensors"}


def test_a_checkpoint_of_another_model_is_refused(saved, ragged):
    other = Bench(ragged, "model.shape.hidden_size=64")
    with pytest.raises(UserError, match="another model or optimizer"):
        restore(read(saved / "checkpoint-6"), other.model, other.optimizer)
    deeper = Bench(ragged, "model.shape.num_hidden_layers=3")
    with pytest.raises(UserError, match="another model or optimizer"):
        restore(read(saved / "checkpoint-6"), deeper.model, deeper.optimizer)


@pytest.mark.parametrize("groups", [[], [{}], [{}] * 5])
def test_a_state_with_another_number_of_parameter_groups_is_refused_in_one_line(saved, ragged, groups):
    path = saved / "checkpoint-6"
    state = path / "state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "optimizer": groups}))
    hashes = json.loads((path / "complete.json").read_text())
    hashes["state.json"] = hashlib.sha256(state.read_bytes()).hexdigest()
    (path / "complete.json").write_text(json.dumps(hashes))
    bench = Bench(ragged, "duration=48seq")
    with pytest.raises(UserError) as caught:
        restore(read(path), bench.model, bench.optimizer)
    reason = f"it has {len(groups)} parameter groups, the optimizer has 2"
    assert caught.value.lines == (f"{path}: saved from another model or optimizer: {reason}",)


def test_a_failed_write_leaves_the_previous_checkpoint(saved, ragged, monkeypatch):
    import hfbsz.system.disk

    bench = Bench(ragged)
    monkeypatch.setattr(hfbsz.system.disk, "sync", lambda path: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        save(saved, 8, collect(bench.model, bench.optimizer), {})
    assert steps(saved) == [6, 4, 2] and not list(saved.glob(".*.tmp"))
    assert newest(saved, print).path.name == "checkpoint-6"


def test_losses_saved_by_another_number_of_ranks_are_summed():
    saved = {"losses": [1.5, 2.0, 4.0]}
    first, second = (Progress(torch.device("cpu"), saved, rank) for rank in (0, 1))
    assert first.loss.item() == 7.5 and second.loss.item() == 0


def test_records_are_truncated_to_the_checkpoint(tmp_path):
    path = tmp_path / "records.jsonl"
    lines = [{"event": event, "train/global_step": step} for step in (1, 2, 3) for event in ("step", "eval")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "step", "train/glob')
    assert trim(path, 2) == {("step", 3), ("eval", 3)}
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:4]


def test_a_resumed_run_has_one_final_record(tmp_path):
    path = tmp_path / "records.jsonl"  # killed between its final record and its status
    lines = [{"event": event, "train/global_step": 3} for event in ("step", "eval", "final")]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert trim(path, 3) == {("final", 3)}
    assert [json.loads(line) for line in path.read_text().splitlines()] == lines[:2]


def test_an_earlier_interruption_forgets_no_record_that_was_sent(tmp_path):
    path = tmp_path / "records.jsonl"
    for last in (100, 70):  # killed at 100, then, once resumed from 50, at 70
        path.write_text(
            "".join(json.dumps({"event": "step", "train/global_step": n}) + "\n" for n in range(1, last + 1))
        )
        sent = trim(path, 50)
    assert sent == {("step", step) for step in range(51, 101)}


def test_resuming_from_an_older_checkpoint_deletes_the_later_ones(saved):
    forget_after(saved, 4)
    assert steps(saved) == [4, 2]


def test_a_checkpoint_knows_its_folder_by_any_path(saved, monkeypatch):
    monkeypatch.chdir(saved)
    assert read(saved / "checkpoint-2").is_in(Path(".")) and not read(Path("checkpoint-2")).is_in(saved.parent)


def test_a_full_disk_is_reported_as_such(saved, ragged, monkeypatch):
    from safetensors import SafetensorError

    import hfbsz.train.checkpoint

    def full(*arguments, **options):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    bench = Bench(ragged)
    monkeypatch.setattr(hfbsz.train.checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left") as caught:
        save(saved, 8, collect(bench.model, bench.optimizer), {})
    assert caught.value.strerror and steps(saved) == [6, 4, 2]


def test_the_newest_one_below_a_step(saved):
    assert newest(saved, print, below=6).path.name == "checkpoint-4"
    assert newest(saved, print, below=2) is None
