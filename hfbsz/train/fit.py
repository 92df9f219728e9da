"""Checks that a built model fits its tokenizer, its rows and its task, from its modules and its outputs."""

from typing import Any, NamedTuple

import torch

from hfbsz.data.tokenizer.tokenizer import token_count
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model
from hfbsz.train.pretrained import field_of, quiet


class Window(NamedTuple):
    """The context window of a model."""

    tokens: int  # length of the longest row that the model accepts
    reserved: int  # positions in the embedding table that no token can use


def window_of(model: Any) -> Window | None:
    """The context window of a model; None for models without a limit: recurrent models, ALiBi, and unlimited relative
    positions.

    RoBERTa and related models count positions from the padding index + 1, so that a table of 514 positions holds 512
    tokens.
    """
    config = model.config
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    limit = next((limit for limit in limits if isinstance(limit, int)), 0)
    if limit <= 0 or getattr(config, "alibi", False):
        return None
    tokens = _input_embeddings(model)
    padded = (part for part in model.modules() if part is not tokens and getattr(part, "padding_idx", None) is not None)
    positions = [part for part in padded if getattr(getattr(part, "weight", None), "shape", (0,))[0] == limit]
    reserved = max((part.padding_idx + 1 for part in positions), default=0)
    return Window(limit - reserved, reserved)


def check_window(model: Any, sequence_length: int) -> None:
    """Raise UserError for rows that are longer than the model's context window."""
    window = window_of(model)
    if window is None or sequence_length <= window.tokens:
        return
    detail = f" ({window.tokens + window.reserved} positions, {window.reserved} of them reserved)"
    raise UserError(
        f"data.sequence_length: {sequence_length} is beyond the model's window of {window.tokens} tokens"
        f"{detail if window.reserved else ''}: set data.sequence_length={window.tokens} or less"
    )


def fit_vocabulary(model: Any, tokenizer: Any, spec: Model) -> list[str]:
    """Check that every token has an embedding, adding rows if `grow_embeddings` is set; returns notes for the user.

    Raises UserError for tokens without an embedding.
    """
    rows, count = vocabulary_of(model), token_count(tokenizer)
    if rows is None or rows >= count:
        return []
    if spec.shape is not None:
        raise UserError(
            f"model.shape.vocab_size: {rows} is smaller than the tokenizer's {count}: leave it out to use the "
            "tokenizer's size, or set a smaller data.vocab_size"
        )
    mismatch = f"has embeddings for {rows} tokens, the tokenizer has {count}"
    if spec.lora is not None:
        raise UserError(
            f"{field_of(spec)} {mismatch}, and LoRA would not train rows that model.grow_embeddings adds: use the "
            "model's own tokenizer (data.tokenizer=…), or train all weights: model.lora=null model.grow_embeddings=true"
        )
    if not spec.grow_embeddings:
        raise UserError(
            f"{field_of(spec)} {mismatch}: add rows with model.grow_embeddings=true, or use the model's own tokenizer "
            "(data.tokenizer=…)"
        )
    with quiet():
        model.resize_token_embeddings(count)
    return [f"model.grow_embeddings: {count - rows} rows were added to the embeddings, which now have {count} rows"]


def vocabulary_of(model: Any) -> int | None:
    """The number of tokens that have an embedding; None for a model without an embedding table."""
    weight = getattr(_input_embeddings(model), "weight", None)
    return weight.shape[0] if weight is not None else getattr(model.config, "vocab_size", None)


def _input_embeddings(model: Any) -> Any:
    """The input embeddings of a model; None if it has none."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:  # raised by transformers for models without a table of tokens, such as CANINE
        return None


def check_finite(field: str, model: Any) -> None:
    """Raise UserError for weights with values that are not finite; `field`: the recipe field and its value."""
    for name, weight in model.named_parameters():
        if weight.numel() and not all(torch.isfinite(extreme) for extreme in weight.detach().aminmax()):
            count = int((~torch.isfinite(weight)).sum())
            raise UserError(
                f"{field}: {count:,} of {weight.numel():,} values of {name} are not finite: download them again, or "
                "use a checkpoint from before the divergence"
            )


@torch.no_grad()
def check_causal(model: Any) -> None:
    """Raise UserError for a language model whose positions attend to later tokens, such as an encoder with a language
    modeling head. This is tested with a forward pass, unless the configuration declares the model a decoder."""
    if getattr(model.config, "is_decoder", None) is True:
        return
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]]) % model.config.vocab_size
    training = model.training
    first, second = model.eval()(input_ids=tokens, use_cache=False).logits[:, :-1]
    model.train(training)
    if not torch.allclose(first, second, rtol=0, atol=1e-5 * float(first.abs().max())):
        raise UserError(
            f"model: {model.config.model_type} attends to later tokens, so it is not a causal language model: "
            "use another model, or task=classification"
        )


def pad_token_of(model: Any, tokenizer: Any) -> int:
    """The token that pads a classifier's rows: the tokenizer's padding or end-of-text token, else one that no text can
    end with, or 0 if padding is masked, so that the token does not matter.

    Raises UserError if a model that finds the end of a text by its padding token has no such token.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    if not _ends_by_pad(model):
        return 0
    special = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "cls", "mask"))
    spare = token_count(tokenizer) if (vocabulary_of(model) or 0) > token_count(tokenizer) else None
    token = next((token for token in (*special, spare) if token is not None), None)
    if token is None:
        raise UserError(
            f"data.tokenizer: it has no padding token, by which {model.config.model_type} finds the end of a text: "
            "add one (pad_token in tokenizer_config.json), with model.grow_embeddings=true if the model has no row "
            "for it"
        )
    return int(token)


@torch.no_grad()
def _ends_by_pad(model: Any) -> bool:
    """Whether a classifier reads the last token that is not padding, and finds it by token id alone (not the mask)."""
    tokens = torch.tensor([[1, 2, 3, 4]]) % (vocabulary_of(model) or 5)
    training, before = model.training, model.config.pad_token_id
    model.eval()
    logits = []
    for pad in (0, int(tokens[0, -1])):
        model.config.pad_token_id = pad
        logits.append(model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits)
    model.config.pad_token_id = before
    model.train(training)
    return not torch.equal(*logits)
