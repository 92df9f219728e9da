"""The commands: `hfbsz NAME …`, `python -m hfbsz NAME …`, or `scripts/NAME.py` in a clone."""

COMMANDS = {
    "plan": "print the training plan of a recipe: batch, accumulation, learning rate, schedule",
    "pretrain": "pretrain a language model (accelerate launch -m hfbsz pretrain)",
    "finetune": "fine-tune a model (accelerate launch -m hfbsz finetune)",
    "advise": "advise on batch, rate, split and devices, from what was measured and from laws",
    "probe": "measure throughput and memory over the micro-batch on this hardware",
    "compare": "compare batch sizes",
    "critical": "fit the critical batch to steps over batches",
    "sharpness": "measure how sharp the minima are that runs reached",
    "harness": "score runs on tasks of lm-evaluation-harness",
    "runs": "list runs: filter, sort, as text, JSON or CSV",
    "report": "write an HTML report of one or more runs",
    "push": "push a run that has ended to the Hugging Face Hub",
    "sync": "upload the missing records of runs to Weights & Biases",
    "dashboard": "create a W&B view and report for a project",
}
