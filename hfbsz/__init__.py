"""hfbsz: plan, explain, run and compare batch sizes for training Hugging Face language models.

The public names are imported on first use, so that `import hfbsz` is fast and does not import torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hfbsz.data.rows import prepare
    from hfbsz.errors import UserError
    from hfbsz.plan.explain import explain
    from hfbsz.plan.plan import Facts, Plan
    from hfbsz.plan.resolve import resolve
    from hfbsz.recipe.fields import Recipe
    from hfbsz.recipe.load import from_mapping, load
    from hfbsz.records.run_data import read_run
    from hfbsz.train.setup import Setup, setup
    from hfbsz.trainer.arguments import training_arguments
    from hfbsz.trainer.overfitting import OverfittingWatch
    from hfbsz.trainer.planned import planned

__version__ = "0.1.0"
__all__ = [
    "Facts",
    "OverfittingWatch",
    "Plan",
    "Recipe",
    "Setup",
    "UserError",
    "explain",
    "from_mapping",
    "load",
    "planned",
    "prepare",
    "read_run",
    "resolve",
    "setup",
    "training_arguments",
]

_MODULES = {
    "Facts": "plan.plan",
    "OverfittingWatch": "trainer.overfitting",
    "Plan": "plan.plan",
    "Recipe": "recipe.fields",
    "Setup": "train.setup",
    "UserError": "errors",
    "explain": "plan.explain",
    "from_mapping": "recipe.load",
    "load": "recipe.load",
    "planned": "trainer.planned",
    "prepare": "data.rows",
    "read_run": "records.run_data",
    "resolve": "plan.resolve",
    "setup": "train.setup",
    "training_arguments": "trainer.arguments",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hfbsz' has no attribute {name!r}; it has {', '.join(__all__)}")
    import importlib

    return getattr(importlib.import_module(f"hfbsz.{_MODULES[name]}"), name)
