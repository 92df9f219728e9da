"""Pretrain a language model: `accelerate launch scripts/pretrain.py recipe=large_batch`."""

from hfbsz.__main__ import run

if __name__ == "__main__":
    run("pretrain")
