"""A synthetic comparison: two arms that ended, a run that failed, an arm that has not started."""

import json
import math
from collections.abc import Mapping
from pathlib import Path

from hfbsz.experiment.results import ArmResult, Experiment, Outcome, TriedValue
from hfbsz.experiment.statistics.evidence import findings
from hfbsz.experiment.statistics.trials import Arm, Trial, compare

SMALL, LARGE = Arm(8, 2e-3, 8, rule="sqrt", tuned=True), Arm(64, 2e-3, 64, rule="sqrt", tuned=True)
WAITING = ArmResult("batch.size=512", None, (Outcome(0, Path("waiting"), "waiting"),))
Losses = Mapping[Arm, tuple[float, ...]]
LOSSES: Losses = {SMALL: (4.3911, 4.3726, 4.6447), LARGE: (5.4323, 5.4692, 5.5013)}


def outcome(folder: Path, arm: Arm, seed: int, loss: float) -> Outcome:
    trial = Trial(arm, seed, best_loss=loss, final_loss=loss, gap=math.inf, peak_memory_bytes=2.0**30 + seed)
    path = folder / f"b{arm.batch}-s{seed}"
    return Outcome(seed, path, "finished", share=1.0, trial=trial, best_epoch=1.5 + seed, seconds_to_best=math.nan)


def experiment(folder: Path, failed: bool = True, losses: Losses = LOSSES) -> Experiment:
    """The comparison; `folder` gets the wandb.json of one run, the small batch with seed 0."""
    arms = {arm: [outcome(folder, arm, seed, loss) for seed, loss in enumerate(losses[arm])] for arm in losses}
    arms[LARGE] += [Outcome(3, folder / "b64-s3", "failed", why="out of memory")] if failed else []
    identity = {"id": "b8-s0-abc", "project": "p", "entity": None, "group": "g", "job_type": "pretrain", "name": "n"}
    arms[SMALL][0].folder.mkdir(parents=True, exist_ok=True)
    (arms[SMALL][0].folder / "wandb.json").write_text(json.dumps(identity))
    tried = (
        TriedValue(1e-3, math.nan),
        TriedValue(2e-3, 4.4, chosen=True, outcome=arms[SMALL][0]),
        TriedValue(4e-3, None),
    )
    trials = [outcome.trial for outcomes in arms.values() for outcome in outcomes if outcome.trial]
    results = (
        ArmResult("batch.size=8", SMALL, tuple(arms[SMALL]), tried),
        ArmResult("batch.size=64", LARGE, tuple(arms[LARGE])),
        WAITING,
    )
    return Experiment(
        "a name", "compare.py …", "language_modeling", folder, results, "optim.lr",
        tuple(findings(trials)), tuple(compare(trials, baseline=SMALL)), SMALL,
    )  # fmt: skip
