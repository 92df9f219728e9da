"""Synthetic comparisons: batches × (none, sqrt, tuned) × seeds, with curves that overfit slightly."""

import math
import random
from dataclasses import replace
from pathlib import Path

from hfbsz.experiment.results import ArmResult, Experiment, Outcome, TriedValue
from hfbsz.experiment.statistics.evidence import findings
from hfbsz.experiment.statistics.trials import Arm, Trial, compare
from hfbsz.records.run_data import RunData

ROWS, REFERENCE, TOKENS_PER_ROW = 6000, 16, 128
KINDS = {"none": ("none", False), "sqrt": ("sqrt", False), "tuned": ("sqrt", True)}


def make_arm(batch: int, kind: str, **changes) -> Arm:
    rule, tuned = KINDS[kind]
    rate = 1e-3 * (math.sqrt(batch / REFERENCE) if rule == "sqrt" else 1) * (1.4 if tuned else 1)
    return replace(Arm(batch, rate, min(batch, 16), max(1, batch // 16), rule, tuned), **changes)


def make_run(arm: Arm, seed: int, share: float = 1.0, epochs: int = 3) -> RunData:
    """A run with 40 evaluations, up to a share of its budget; the loss falls, then rises slightly."""
    shift = {"none": 0.012, "sqrt": 0.004}[arm.rule] * (0.3 if arm.tuned else 1) * (math.log2(arm.batch) - 3) ** 2
    rng = random.Random(f"{arm} {seed}")
    noise = random.Random(seed).gauss(0, 0.03) + rng.gauss(0, 0.008)
    records = []
    for number in range(1, int(40 * share) + 1):
        clock = number * ROWS * epochs // 40
        epoch = clock / ROWS
        loss = 3.2 + 2.4 * math.exp(-epoch / 0.35) + shift + noise + 0.02 * max(0, epoch - 1.8) ** 2
        axes = {
            "train/sequences": clock,
            "train/global_step": clock // arm.batch,
            "train/num_input_tokens_seen": clock * TOKENS_PER_ROW,
            "train/seconds": clock * TOKENS_PER_ROW / speed(arm),
        }
        records.append({"event": "eval", **axes, "eval/loss": loss + rng.gauss(0, 0.005)})
    if share == 1:
        final = {"event": "final", **axes, "model/step": axes["train/global_step"]}
        score = {"harness/python_next_line/acc": round(0.5 - 0.05 * loss, 4), "harness/python_next_line/examples": 100}
        records.append({**final, "full/loss": records[-1]["eval/loss"] + 0.1})
        records.append({**final, "event": "harness", **score})
    return RunData(
        Path(f"runs/{arm.batch}-{arm.rule}-{arm.tuned}-{seed}"), tuple(records), {"facts": {"rows": ROWS}}, {}, ""
    )


def speed(arm: Arm) -> float:
    """Tokens per second, which levels off at a batch of 20."""
    return 9000 * min(arm.batch, 20) / (min(arm.batch, 20) + 6)


def make_outcome(arm: Arm, seed: int, share: float = 1.0, **changes) -> Outcome:
    run = make_run(arm, seed, share)
    if share < 1:
        return replace(Outcome(seed, run.folder, "running", share=share, run=run), **changes)
    best = min((one for one in run.records if one["event"] == "eval"), key=lambda record: record["eval/loss"])
    trial = Trial(
        arm,
        seed,
        best["eval/loss"],
        best["eval/loss"] + 0.1,
        gap=0.2 + 0.01 * seed + 0.1 / arm.batch + 0.3 * (best["eval/loss"] % 0.01),
        accuracy=round(0.9 - 0.05 * best["eval/loss"] + 0.002 * seed, 4),
        tokens_per_second=speed(arm) + 10 * seed,
        steps_to_target=1e4 / arm.batch + seed,
        peak_memory_bytes=1.2e9 + 2e7 * arm.micro_batch,
        optimizer_steps=run.records[-1]["train/global_step"],
        eigenvalue=10 + 0.4 * arm.batch + seed,
        adaptive_sam=0.2 + 0.002 * arm.batch + 0.01 * seed,
        critical_sharpness=300 + arm.batch + 10 * seed,
    )
    fields = {
        "best_step": best["train/global_step"],
        "best_epoch": best["train/sequences"] / ROWS,
        "onset_epoch": best["train/sequences"] / ROWS if seed else None,
        "seconds_to_best": best["train/seconds"],
        "padding": 0.03 + 0.002 * math.log2(arm.batch),
    }
    return replace(Outcome(seed, run.folder, "finished", None, 1.0, run, trial, **fields), **changes)


def make_result(batch: int, kind: str, seeds: int = 3, **changes) -> ArmResult:
    arm = make_arm(batch, kind)
    tried = ()
    if arm.tuned:
        losses = {2.5e-4: 3.41, 5e-4: 3.3, 1e-3: 3.26, 2e-3: 3.29, 4e-3: 3.4 if batch > 8 else math.nan}
        tried = tuple(TriedValue(value, loss + batch / 2000, value == 1e-3) for value, loss in losses.items())
    outcomes = tuple(make_outcome(arm, seed) for seed in range(seeds))
    return replace(ArmResult(words_of(batch, kind), arm, outcomes, tried), **changes)


def words_of(batch: int, kind: str) -> str:
    return f"batch.size={batch} " + ("optim.lr=tuned" if kind == "tuned" else f"scaling.rule={kind}")


def make_experiment(arms: tuple[ArmResult, ...], **changes) -> Experiment:
    """A comparison of these arms; the baseline is the first one with a finished run."""
    trials = [trial for result in arms for trial in result.trials]
    experiment = Experiment(
        "reviews-batch-sizes",
        "python scripts/compare.py recipe=finetune batch.size=8,16,32,64 scaling.rule=none,sqrt seed=0,1,2",
        "classification",
        Path("runs/reviews"),
        arms,
        "optim.lr",
        tuple(findings(trials)),
        tuple(compare(trials, baseline=trials[0].arm)) if trials else (),
        trials[0].arm if trials else None,
        3.4,
        ("2 runs of another recipe in this folder were left out.",),
        finished=all(outcome.state in ("finished", "failed") for result in arms for outcome in result.outcomes),
    )
    return replace(experiment, **changes)


def full_sample() -> Experiment:
    """A finished comparison of 12 arms: one has failed, one has a diverged seed."""
    arms = [make_result(batch, kind) for kind in KINDS for batch in (8, 16, 32, 64)]
    why = "out of memory: 64 sequences of 512 tokens do not fit"
    failed = [Outcome(outcome.seed, outcome.folder, "failed", why, 0.4) for outcome in arms[7].outcomes]
    arms[7] = replace(arms[7], outcomes=tuple(failed))
    trial = arms[3].outcomes[1].trial
    assert trial is not None
    diverged = replace(arms[3].outcomes[1], trial=replace(trial, final_loss=math.nan, gap=math.nan))
    arms[3] = replace(arms[3], outcomes=(arms[3].outcomes[0], diverged, arms[3].outcomes[2]))
    return make_experiment(tuple(arms))


def unfinished_sample() -> Experiment:
    """A running comparison: four arms are finished, one has started, seven are waiting."""
    arms = []
    for place, (kind, batch) in enumerate((kind, batch) for kind in KINDS for batch in (8, 16, 32, 64)):
        arm = make_arm(batch, kind)
        if place < 4:
            arms.append(make_result(batch, kind))
        elif place == 4:
            outcomes = (make_outcome(arm, 0), make_outcome(arm, 1, 0.45), make_outcome(arm, 2, 0.2, state="preempted"))
            arms.append(make_result(batch, kind, outcomes=outcomes))
        else:
            waiting = tuple(Outcome(seed, Path(f"runs/{place}-{seed}"), "waiting") for seed in range(3))
            arms.append(ArmResult(words_of(batch, kind), None, waiting))
    return make_experiment(tuple(arms), seconds_left=4300.0, jobs=2)
