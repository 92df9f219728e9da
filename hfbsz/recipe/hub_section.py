"""The Hub in a recipe: the repository that a run is pushed to."""

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from hfbsz.recipe.section import AmountField, Section


def repository_id(value: object) -> object:
    """The id of a repository, unchanged. Raises ValueError for one that the Hub would not accept."""
    if value is None:
        return None
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # imported here: only a recipe with an id needs it

    try:
        validate_repo_id(value)  # type: ignore[arg-type]  # it checks the type
    except HFValidationError:
        raise ValueError(
            f"{value!r} is not the id of a repository, which is OWNER/NAME or NAME: letters, digits, '-', '_' and '.', "
            "at most 96 characters"
        ) from None
    return value


class Hub(Section):
    """The Hugging Face Hub: where the model, its card and its records are pushed; it does not change the result."""

    id: Annotated[str | None, BeforeValidator(repository_id)] = Field(
        None, description="repository to push the run to at its end, OWNER/NAME or NAME; null: nothing is pushed"
    )
    private: bool = Field(True, description="create the repository as a private one")
    every: AmountField | None = Field(
        None, description="interval between pushes during the run, with the weights of that step; null: only at the end"
    )

    @model_validator(mode="after")
    def _has_id(self) -> "Hub":
        if self.every is not None and self.id is None:
            raise ValueError("every: nothing is pushed without a repository: set hub.id too, or leave every out")
        return self
