"""The data that a recipe trains and evaluates on, tokenized with its model's tokenizer."""

from hfbsz.data.prepare.budget import needed_by
from hfbsz.data.prepare.corpus import Progress
from hfbsz.data.rows import Prepared, prepare
from hfbsz.recipe.fields import Recipe
from hfbsz.recipe.tasks import RowKind
from hfbsz.train.loadable import check
from hfbsz.train.pretrained import labels_of, quiet, tokenizer_of


def prepare_inputs(recipe: Recipe, progress: Progress, parameters: int | None = None) -> Prepared:
    """The prepared data of a recipe, from the cache or prepared now.

    `parameters`: the model's number of parameters outside the embeddings, if a scaling law needs it. Raises UserError
    for a model or data that cannot be read, and for labels that do not match a pretrained head.
    """
    is_classifier = recipe.row_kind is RowKind.LABEL
    check(recipe.model, is_classifier)  # before time is spent on the rows
    needed = needed_by(recipe, parameters)
    tokenizer = recipe.data.tokenizer or tokenizer_of(recipe.model)
    labels = labels_of(recipe.model) if is_classifier else None
    data = recipe.data.model_copy(update={"tokenizer": tokenizer})
    with quiet():
        return prepare(data, recipe.eval.sets, progress, needed, recipe.row_kind, labels)
