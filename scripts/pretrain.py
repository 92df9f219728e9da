"""Pretrain a language model: `accelerate launch scripts/pretrain.py recipe=large_batch`."""

from hfbsz.cli import entry

if __name__ == "__main__":
    entry("pretrain")
