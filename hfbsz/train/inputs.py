"""The rows that a recipe trains and evaluates on, with the tokenizer that belongs to its model."""

from hfbsz.data.prepare.budget import needed_by
from hfbsz.data.prepare.corpus import Progress
from hfbsz.data.rows import Prepared, prepare
from hfbsz.recipe.fields import Recipe
from hfbsz.train.loadable import check
from hfbsz.train.pretrained import labels_of, quiet, tokenizer_of


def prepare_inputs(recipe: Recipe, progress: Progress, parameters: int | None = None) -> Prepared:
    """The prepared data of a recipe, from the cache or made now; `parameters` are the weights outside the embeddings,
    where a scaling law asks for them. Raises UserError for what cannot be read or does not fit."""
    check(recipe.model, recipe.task == "classification")  # before the work on the rows is spent
    needed = needed_by(recipe, parameters)
    own = recipe.data.tokenizer or tokenizer_of(recipe.model)
    labels = labels_of(recipe.model) if recipe.task == "classification" else None
    data = recipe.data.model_copy(update={"tokenizer": own})
    with quiet():
        return prepare(data, recipe.eval.sets, progress, needed, recipe.task, labels)
