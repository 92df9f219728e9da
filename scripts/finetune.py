"""Fine-tune what a recipe asks for: accelerate launch scripts/finetune.py recipe=small_batch."""

from hfbsz.cli import entry

if __name__ == "__main__":
    entry("finetune")
