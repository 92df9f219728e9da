"""The commands: `hfbsz NAME …`, `python -m hfbsz NAME …`, or `scripts/NAME.py` of a clone."""

COMMANDS = {
    "plan": "print every number that follows from a recipe",
    "pretrain": "pretrain a language model (by accelerate launch -m hfbsz pretrain)",
    "finetune": "fine-tune a model (by accelerate launch -m hfbsz finetune)",
    "compare": "compare batch sizes",
    "report": "draw runs as one page",
    "sync": "send Weights & Biases what it lacks of runs",
    "dashboard": "save a W&B view and report of a project",
}
