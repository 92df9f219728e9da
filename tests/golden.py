"""Five tiny runs in float64, whose losses, gradient norms and final weights a refactoring must not change.

`python tests/golden.py` runs them and writes tests/golden.json. Run it only if the computation is meant to change.
"""

import hashlib
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = Path(__file__).with_name("golden.json")
NUMBERS = ("train/loss", "train/grad_norm", "train/learning_rate", "eval/loss")
WORDS = [f"w{number}" for number in range(200)]
TINY = ["recipe=tests/tiny.yaml", "precision=fp64", "threads=1", "optim.lr=1e-2"]
RAMP = ["data.pack=true", "batch.size=null", "batch.ramp=0:4 40%:8", "batch.micro_max=4", "duration=24steps"]
LABELED = ["task=classification", "data.label=label"]
RUNS: dict[str, tuple[list[str], int]] = {  # words, processes
    "packed_ramp": ([*TINY, *RAMP], 1),
    "classification_by_length": ([*TINY, *LABELED, "batch.by_length=true", "duration=24steps"], 1),
    "two_ranks_ragged": ([*TINY, "batch.micro_max=2", "batch.micro_tokens=64", "duration=16steps"], 2),
    "muon": ([*TINY, "optim.name=muon", "duration=16steps"], 1),
    "resumed": ([*TINY, *RAMP, "checkpoint.every=5steps", "model.shape.attention_dropout=0.1"], 1),
}


def write_inputs(folder: Path) -> list[str]:
    """Write a corpus of fixed words and a tokenizer with these words; returns the command-line words that name both."""
    draw = random.Random(0)
    rows = []
    for number in range(240):
        words = draw.choices(WORDS[: 20 + number % 180], k=draw.randint(3, 40))
        rows.append({"text": f"w{number % 200} " + " ".join(words), "label": "ab"[sum(map(len, words)) % 2]})
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    names = ["<end>", *WORDS]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(names)}, unk_token="<end>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = dict.fromkeys(("eos_token", "bos_token", "pad_token", "unk_token"), "<end>")
    PreTrainedTokenizerFast(tokenizer_object=inner, **ends).save_pretrained(folder / "tokenizer")
    return [f"data.files={folder}/rows.jsonl", f"data.tokenizer={folder}/tokenizer", "data.sequence_length=24"]


def numbers_of(run: Path) -> dict:
    """The reference values of a finished run."""
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    values = {name: [line[name] for line in lines if name in line] for name in NUMBERS}
    weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    return {**values, "weights": {machine(): weights}}


def machine() -> str:
    """The torch version and CPU instruction set, on which the last digits of a sum depend."""
    return f"torch {torch.__version__.partition('+')[0]}, {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        inputs = write_inputs(Path(temporary))
        for name, (words, processes) in RUNS.items():
            config = ROOT / "accelerate_configs" / ("cpu.yaml" if processes == 1 else "cpu_2proc.yaml")
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
            script = "finetune.py" if "task=classification" in words else "pretrain.py"
            run = Path(temporary) / name
            command = [*launch, f"scripts/{script}", *words, *inputs, "log.wandb=off", f"output_dir={run}"]
            subprocess.run(command, cwd=ROOT, check=True)
            results[name] = numbers_of(run)
    GOLDEN.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
