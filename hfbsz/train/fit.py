"""Whether a built model fits its tokenizer, its rows and its task, by its parts and its behaviour."""

from typing import Any, NamedTuple

import torch

from hfbsz.data.tokenizer.tokenizer import token_count
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model
from hfbsz.train.pretrained import field_of, quiet


class Window(NamedTuple):
    """The longest row that a model takes."""

    tokens: int
    reserved: int  # positions that no token of a row can have


def window_of(model: Any) -> Window | None:
    """None where positions have no end: recurrent models, ALiBi, and relative positions without a limit.

    RoBERTa and its kin count positions from the padding's index on, so that a table of 514 has room for 512 tokens.
    """
    config = model.config
    limits = (getattr(config, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    limit = next((limit for limit in limits if isinstance(limit, int)), 0)
    if limit <= 0 or getattr(config, "alibi", False):
        return None
    words = _embeddings(model)
    tables = (part for part in model.modules() if part is not words and getattr(part, "padding_idx", None) is not None)
    sized = [part for part in tables if getattr(getattr(part, "weight", None), "shape", (0,))[0] == limit]
    reserved = max((part.padding_idx + 1 for part in sized), default=0)
    return Window(limit - reserved, reserved)


def check_window(model: Any, sequence_length: int) -> None:
    """Raise UserError for rows that are longer than the model's window."""
    window = window_of(model)
    if window is None or sequence_length <= window.tokens:
        return
    counted = f" ({window.tokens + window.reserved} positions, {window.reserved} of them reserved)"
    raise UserError(
        f"data.sequence_length: {sequence_length} is beyond the model's window of {window.tokens} tokens"
        f"{counted if window.reserved else ''}: write data.sequence_length={window.tokens} or less"
    )


def fit_vocabulary(model: Any, tokenizer: Any, wanted: Model) -> list[str]:
    """Check that every token has an embedding, and add rows where that is wished; returns what a person should know."""
    rows, count = vocabulary_of(model), token_count(tokenizer)
    if rows is None or rows >= count:
        return []
    if wanted.shape is not None:
        raise UserError(
            f"model.shape.vocab_size: {rows} is smaller than the tokenizer's {count}: leave it out, and it is as large "
            "as the tokenizer, or take a smaller data.vocab_size"
        )
    has = f"has embeddings for {rows} tokens, the tokenizer has {count}"
    if wanted.lora is not None:
        raise UserError(
            f"{field_of(wanted)} {has}, and LoRA would not train the rows that model.grow_embeddings adds: name the "
            "model's own tokenizer (data.tokenizer=…), or train the whole model: model.lora=null "
            "model.grow_embeddings=true"
        )
    if not wanted.grow_embeddings:
        raise UserError(
            f"{field_of(wanted)} {has}: add rows to them with model.grow_embeddings=true, or name the model's own "
            "tokenizer (data.tokenizer=…)"
        )
    with quiet():
        model.resize_token_embeddings(count)
    return [f"model.grow_embeddings: {count - rows} rows were added to the embeddings, now of {count} tokens"]


def vocabulary_of(model: Any) -> int | None:
    """Tokens that have an embedding; None for a model that needs no table of them."""
    words = _embeddings(model)
    weight = getattr(words, "weight", None)
    return weight.shape[0] if weight is not None else getattr(model.config, "vocab_size", None)


def _embeddings(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except NotImplementedError:  # characters that are hashed
        return None


def check_finite(field: str, model: Any) -> None:
    """Raise UserError for weights that are no numbers."""
    for name, weight in model.named_parameters():
        if weight.numel() and not all(torch.isfinite(end) for end in weight.detach().aminmax()):
            count = int((~torch.isfinite(weight)).sum())
            raise UserError(
                f"{field}: {count:,} of {weight.numel():,} values of {name} are not finite: fetch them again, or "
                "take a checkpoint from before they diverged"
            )


@torch.no_grad()
def check_causal(model: Any) -> None:
    """Refuse a language model to which the next token is no secret, such as an encoder with a language model's head:
    shown by behaviour, unless its configuration rules it out."""
    if getattr(model.config, "is_decoder", None) is True:
        return
    tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5]]) % model.config.vocab_size
    training = model.training
    first, second = model.eval()(input_ids=tokens, use_cache=False).logits[:, :-1]
    model.train(training)
    if not torch.allclose(first, second, rtol=0, atol=1e-5 * float(first.abs().max())):
        raise UserError(
            f"model: {model.config.model_type} lets a token see those that come after it, so it predicts none: take "
            "another model, or task=classification"
        )


def pad_token_of(model: Any, tokenizer: Any) -> int:
    """The token that pads a classifier's rows: the tokenizer's own, its end-of-text token, or else one that no text can
    end with, where the model finds a text's end by it. Raises UserError where there is none."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    if not _ends_by_pad(model):
        return 0  # it is masked
    added = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "cls", "mask"))
    spare = token_count(tokenizer) if (vocabulary_of(model) or 0) > token_count(tokenizer) else None
    token = next((token for token in (*added, spare) if token is not None), None)
    if token is None:
        raise UserError(
            f"data.tokenizer: it has no token that pads, by which {model.config.model_type} finds the end of a text: "
            "add one (pad_token in tokenizer_config.json), with model.grow_embeddings=true where the model has no row "
            "for it"
        )
    return int(token)


@torch.no_grad()
def _ends_by_pad(model: Any) -> bool:
    """Whether a classifier looks at the last token that does not pad, and knows it by the token alone."""
    tokens = torch.tensor([[1, 2, 3, 4]]) % (vocabulary_of(model) or 5)
    training, before = model.training, model.config.pad_token_id
    model.eval()
    found = []
    for pad in (0, int(tokens[0, -1])):
        model.config.pad_token_id = pad
        found.append(model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits)
    model.config.pad_token_id = before
    model.train(training)
    return not torch.equal(*found)
