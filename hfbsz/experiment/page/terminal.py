"""The results of a comparison for the terminal: a table of the arms, failures, notes, and findings."""

import math

from hfbsz.experiment.results import Experiment, rows
from hfbsz.experiment.statistics.evidence import Verdict

_COLUMNS = (
    ("loss", "loss (nats/target)", "18.4f"),
    ("loss_sd", "sd", "7.4f"),
    ("bits_per_byte", "bits/byte", "9.4f"),
    ("learning_rate", "rate", "9.3g"),
    ("steps", "steps", "7,.0f"),
    ("seconds", "training (s)", "12.0f"),
)


def lines_of(experiment: Experiment) -> list[str]:
    """The last lines that `hfbsz compare` prints; the page's path is the last one."""
    table = rows(experiment)
    names = [str(row["choices"]) for row in table]
    shown = [column for column in _COLUMNS if any(row[column[0]] is not None or column[0] == "loss" for row in table)]
    width = max(map(len, names))
    lines = ["", f"{'':<{width}}  runs  " + "  ".join(f"{head:>{_width(form, head)}}" for _, head, form in shown)]
    for name, row in zip(names, table, strict=True):
        values = {**row, "loss": math.nan} if row["diverged"] else row
        cells = "  ".join(_cell(values[key], head, form) for key, head, form in shown)
        lines.append(f"{name:<{width}}  {row['runs']:>4}  {cells}")
    lost = [outcome for outcome in experiment.outcomes if outcome.state in ("failed", "diverged")]
    lines += [f"{outcome.state}: {outcome.folder}: {outcome.why}" for outcome in lost]
    lines += [f"note: {note}" for note in experiment.notes]
    lines += [finding.sentence for finding in experiment.findings if finding.verdict is not Verdict.NOT_DECIDED]
    undecided = sum(finding.verdict is Verdict.NOT_DECIDED for finding in experiment.findings)
    if undecided:
        lines.append(f"Not decided: {undecided} of {len(experiment.findings)} common beliefs (see the page).")
    return [*lines, "", str(experiment.page)]


def _width(form: str, head: str) -> int:
    return max(len(head), int("".join(character for character in form.split(".")[0] if character.isdigit())))


def _cell(value: float | None, head: str, form: str) -> str:
    text = "–" if value is None else "diverged" if math.isnan(value) else format(value, form).strip()
    return f"{text:>{_width(form, head)}}"
