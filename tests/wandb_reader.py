"""Reads the `.wandb` file of a run back; wandb has no Python reader of its own."""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

FILE_HEADER, BLOCK, RECORD_HEADER = 7, 32 * 1024, struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class WandbRun:
    """What a run's file holds."""

    name: str = ""
    group: str = ""
    job_type: str = ""
    tags: tuple[str, ...] = ()
    notes: str = ""
    run_id: str = ""
    project: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)  # without W&B's own keys, which begin with _
    metrics: dict[str, Any] = field(default_factory=dict)  # name or glob: its MetricRecord
    summary: dict[str, Any] = field(default_factory=dict)  # what the run was told of it
    exit_code: int | None = None
    artifacts: list[Any] = field(default_factory=list)  # ArtifactRecords
    alerts: list[Any] = field(default_factory=list)  # AlertRecords


def read_run(folder: Path) -> WandbRun:
    """The run of an (offline-)run folder; raises ValueError for a damaged file."""
    (file,) = folder.glob("*.wandb")
    run = WandbRun()
    for payload in _records(file.read_bytes()):
        record = Record.FromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.name, run.group, run.job_type = record.run.display_name, record.run.run_group, record.run.job_type
            run.run_id, run.project = record.run.run_id, record.run.project
            run.tags, run.notes = tuple(record.run.tags), record.run.notes
            run.config |= _values(record.run.config.update)
        elif kind == "history":
            run.history.append({k: v for k, v in _values(record.history.item).items() if not k.startswith("_")})
        elif kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "summary":
            run.summary |= _values(record.summary.update)
        elif kind == "artifact":
            run.artifacts.append(record.artifact)
        elif kind == "alert":
            run.alerts.append(record.alert)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def _records(data: bytes) -> Iterator[bytes]:
    """The payloads of a LevelDB-style log: records are cut where a block of 32 KiB ends. A torn tail is left out."""
    place, parts = FILE_HEADER, b""
    while place + RECORD_HEADER.size <= len(data):
        left = BLOCK - place % BLOCK
        if left < RECORD_HEADER.size:  # padding
            place += left
            continue
        checksum, length, kind = RECORD_HEADER.unpack_from(data, place)
        payload = data[place + RECORD_HEADER.size : place + RECORD_HEADER.size + length]
        if len(payload) < length:
            return
        if zlib.crc32(bytes([kind]) + payload) != checksum:
            raise ValueError(f"wrong checksum at byte {place}")
        place += RECORD_HEADER.size + length
        parts = payload if kind in (FULL, FIRST) else parts + payload
        if kind in (FULL, LAST):
            yield parts
