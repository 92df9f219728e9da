"""Fine-tune a model: `accelerate launch scripts/finetune.py recipe=small_batch`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("finetune")
