"""Output of a run on the terminal: plan, progress bar, evaluations, and a summary at the end."""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Self, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.rule import Rule
from rich.text import Text

from hfbsz.display import one_line, visible
from hfbsz.plan.explain import explain
from hfbsz.plan.plan import Plan
from hfbsz.recipe.amounts import short
from hfbsz.records.metrics import metric
from hfbsz.records.noise import SCALE, noise_of
from hfbsz.records.record import Reading, Step


class Console:
    """Prints the output of one run; control characters are escaped.

    If the output is not a terminal, a line every QUIET_SECONDS replaces the progress bar.
    """

    QUIET_SECONDS = 10.0  # between progress lines if the output is not a terminal

    def __init__(self, file: TextIO | None = None) -> None:
        self.out = RichConsole(file=file, highlight=False, emoji=False)
        label, state = (TextColumn(f"{{task.{part}}}", markup=False) for part in ("description", "fields[state]"))
        columns = (label, BarColumn(bar_width=24), state)
        self._progress = Progress(*columns, TimeRemainingColumn(), console=self.out, transient=True)
        self._task: TaskID | None = None
        self._label = self._noise = ""
        self._began = self._last_line = time.monotonic()  # start of the current work, and time of the last line

    def line(self, text: str, style: str = "") -> None:
        """Print a line; `style` is a rich style such as `yellow`."""
        self.out.print(visible(text), style=style, markup=False, soft_wrap=True)

    def title(self, text: str) -> None:
        """Print a horizontal rule with a title."""
        self.out.print(Rule(Text(one_line(text)), align="left", style="dim"))

    def warn(self, text: str) -> None:
        """Print a warning on one line."""
        self.line(f"warning: {one_line(text)}", "yellow")

    def plan(self, name: str, plan: Plan, notes: Sequence[str]) -> None:
        """Print the explanation of a plan, then its notes."""
        self.title(f"plan of {name}")
        self.line(explain(plan))
        self.notes(notes)

    def notes(self, notes: Iterable[str]) -> None:
        """Print notes, one per line."""
        for note in notes:
            self.line(f"note      {one_line(note)}")

    def preview(self, lines: Sequence[str]) -> None:
        """Print a few rows as the model sees them; the loss is computed on the text between ⟦ and ⟧."""
        for line in lines:
            text = Text(visible(line).replace("\n", "\\n"))
            text.highlight_regex("⟦[^⟧]*⟧", "bold green")
            self.out.print(text, soft_wrap=True)

    def work(self, label: str, done: float, total: float, state: str = "") -> None:
        """Show the progress of long work; `total` 0: length unknown. A new label starts a new bar. `state`: what stands
        beside the progress; empty: the remaining time.

        If the output is not a terminal, a line is printed every QUIET_SECONDS.
        """
        self._bar(label, done, total, state)
        if not self.out.is_terminal and time.monotonic() - self._last_line > self.QUIET_SECONDS:
            share = min(1.0, done / total) if total else math.nan
            left = (time.monotonic() - self._began) * (1 - share) / share if share else math.nan
            progress = f"{share:4.0%}" if total else "…"
            remaining = f"about {left:.0f} s left" if left > 0 else ""
            self._quiet_line(f"{self._label} {progress}  {state or remaining}")

    def _quiet_line(self, text: str) -> None:
        self._last_line = time.monotonic()
        self.line(text.rstrip())

    def _bar(self, label: str, done: float, total: float, state: str) -> None:
        label = one_line(label)
        if label != self._label:
            self.end_work()
            self._task, self._label = self._progress.add_task(label, total=total or None, state=""), label
            self._began = self._last_line = time.monotonic()
            if self.out.is_terminal:
                self._progress.start()
            else:
                self.line(f"{label} …")
        if self._task is not None:
            self._progress.update(self._task, completed=done, total=total or None, state=state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_work()  # also where an error or Ctrl-C ends the work

    def end_work(self) -> None:
        """Remove the progress bar, if there is one."""
        if self._task is not None:
            if self.out.is_terminal:  # otherwise it was not started, and stopping it would print an empty line
                self._progress.stop()
            self._progress.remove_task(self._task)
        self._task, self._label = None, ""

    def step(self, step: Step, plan: Plan) -> None:
        """Update the progress bar with a logged optimizer step."""
        if SCALE in step.collected:
            self._noise = f"  noise scale {short(step.collected[SCALE])} seq"
        loss = "" if step.loss is None else f"loss {step.loss:.3f}"
        speed = "" if step.tokens_per_second is None else f"{short(step.tokens_per_second)} tokens/s"
        batch = f"batch {step.global_batch} seq{self._noise}"
        state = f"{min(1, step.at.sequences / plan.total):4.0%}  {loss}  {batch}  {speed}"
        if step.logged:
            self._bar("training", step.at.sequences, plan.total, state)
            if not self.out.is_terminal and time.monotonic() - self._last_line > self.QUIET_SECONDS:
                self._quiet_line(f"step {step.at.step:>6,} {state}")

    def ramp(self, step: Step, batch: int) -> None:
        """Print that the batch grows after a step, to `batch` sequences, and the noise scale that supports it."""
        noise = noise_of([{**step.collected, "batch/global": step.global_batch}])
        shown = "" if noise is None else f": noise scale {noise.shown}"
        self.line(f"ramp      batch {step.global_batch} → {batch} sequences after step {step.at.step:,}{shown}")

    def evaluation(self, reading: Reading) -> None:
        """Print one evaluation: step, tokens, losses, gap, and whether it is the best so far."""
        parts = [f"step {reading.at.step:>6,}  {short(reading.at.tokens):>5} tokens"]
        values = reading.values
        for name, value in values.items():
            prefix, _, last = name.rpartition("/")
            label = prefix.removeprefix("eval").strip("/")
            if last == "loss":
                parts.append(f"{label or 'validation'} loss {metric(name).show(float(value))}")
            elif last == "bits_per_byte":
                parts.append(metric(name).show(float(value)))
            elif last in ("accuracy", "preference_accuracy", "reward_margin"):
                parts.append(f"{metric(name).heading} {metric(name).show(float(value))}")
        loss, train = values.get("eval/loss"), values.get("overfit/train_loss")
        if isinstance(loss, float) and isinstance(train, float):  # the gap between the two rounded numbers on this line
            parts.append(f"training rows {train:.4f} (gap {round(loss, 4) - round(train, 4):+.4f})")
        if reading.at.step and values.get("overfit/best_step") == reading.at.step:
            parts.append("the best so far")
        change = values.get("overfit/change")
        if isinstance(loss, float) and isinstance(change, float) and not change < 0:
            at_start = f" ({loss - change:.4f} at step 0)" if math.isfinite(change) else ""
            parts.append(f"not better than before training{at_start}")
        if "overfit/onset_step" in values:
            parts.append(f"overfitting since step {values['overfit/onset_step']:,.0f}")
        self._last_line = time.monotonic()
        self.line("  ".join(parts))

    def last_page(self, title: str, reached: Mapping[str, str], folder: Path, hints: Sequence[str]) -> None:
        """Print the summary of a run: its results, its folder, and what to do next."""
        self.end_work()
        self.title(title)
        width = max(map(len, [*reached, "saved to"]))
        for name, value in reached.items():
            self.line(f"{name:<{width}}  {value}")
        self.line(f"{'saved to':<{width}}  {folder}")
        self.title("next")
        for hint in hints:
            self.line(hint)
