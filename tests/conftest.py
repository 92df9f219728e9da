import json
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TINY = "recipe=tests/tiny.yaml"


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def environment(cache) -> dict[str, str]:
    """The user's environment, without what another test or a launcher may have set."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE_", "WANDB_", "OMP_"))}
    return kept | {"HFBSZ_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled"}


@pytest.fixture(scope="session")
def ragged(tmp_path_factory) -> Path:
    """300 documents of real source text, from 3 to 400 characters, as JSON lines."""
    text = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_text()
    path = tmp_path_factory.mktemp("corpus") / "ragged.jsonl"
    start, lines = 0, []
    for number in range(300):
        length = 3 + (number * 7919) % 398
        lines.append(json.dumps({"text": text[start : start + length]}))
        start += 250
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def hfbsz(environment):
    """Run a script as a user would: with accelerate launch on 1 or 2 processes or a config, or with plain python."""

    def run(script, *words, processes=1, config=None, plain=False, env=None, timeout=300) -> Ended:
        name = config or ("cpu.yaml" if processes == 1 else "cpu_2proc.yaml")
        config = ROOT / "accelerate_configs" / name
        launch = [] if plain else ["-m", "accelerate.commands.launch", "--config_file", str(config)]
        path = script if Path(script).is_absolute() else str(ROOT / "scripts" / script)
        command = [sys.executable, *launch, path, *map(str, words)]
        done = subprocess.run(
            command, cwd=ROOT, env={**environment, **(env or {})}, capture_output=True, text=True, timeout=timeout
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


def records(folder: Path, event: str) -> list[dict]:
    lines = (Path(folder) / "records.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == event]
