"""`records.jsonl`: all that was logged, one flat JSON object a line; what W&B and the page show is drawn from it."""

import json
import math
import time
from pathlib import Path

from hfbsz.record import Reading


class JsonLines:
    """Appends readings; every line is on its way to the disk before the next step."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def write(self, reading: Reading) -> dict[str, float | str]:
        """Append a line and return it. A value that is not finite is left out: JSON has no word for it."""
        flat = {**reading.flat(), "time": round(time.time(), 3)}
        kept = {name: value for name, value in flat.items() if isinstance(value, str) or math.isfinite(value)}
        self._file.write(json.dumps(kept) + "\n")
        self._file.flush()
        return kept

    def close(self) -> None:
        self._file.close()


def trim(path: Path, step: int) -> frozenset[tuple[str, int]]:
    """Cut records.jsonl back to what was written up to `step`, without the `final` record: a run that goes on writes it
    again. Returns (event, step) of the records cut off, now or by an earlier start, which W&B may have already. A line
    that a crash cut short goes too."""
    kept: list[str] = []
    seen = path.with_name("sent.json")  # a start that was cut off sooner must not forget what the one before had sent
    cut = {(event, at) for event, at in json.loads(seen.read_text())} if seen.is_file() else set()
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            event, at = str(record["event"]), int(record["train/global_step"])
        except (ValueError, LookupError, TypeError):
            continue
        if at <= step and event != "final":
            kept.append(line + "\n")
        else:
            cut.add((event, at))
    seen.write_text(json.dumps(sorted(cut)))
    whole = path.with_name(f".{path.name}.tmp")
    whole.write_text("".join(kept), encoding="utf-8")
    whole.replace(path)
    return frozenset(cut)
