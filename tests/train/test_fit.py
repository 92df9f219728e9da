"""Models and tokenizers that do not fit as they are: missing embedding rows, and padding tokens."""

import pytest
import torch
from small_models import SHAPES, SIZE, logits, small_model, small_tokenizer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    ByT5Tokenizer,
    CanineConfig,
    CanineModel,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from hfbsz.data.tokenizer.tokenizer import load_tokenizer
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model
from hfbsz.train.fit import fit_vocabulary, vocabulary_of, window_of
from hfbsz.train.model import build_model, set_generation_ends
from hfbsz.train.tasks.classification import Classification

LABELS = ["rotten", "fresh"]


def with_tokens(*added):
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list(added)})
    return tokenizer


def bare(**special):
    """A tokenizer with no special tokens but `special`."""
    return PreTrainedTokenizerFast(tokenizer_object=small_tokenizer().backend_tokenizer, **special)


def refused(tokenizer, labels=None, **fields) -> str:
    with pytest.raises(UserError) as caught:
        build_model(Model(**fields), tokenizer, 0, 16, labels)
    (line,) = caught.value.lines
    return line


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "mixtral", "bert", "distilbert", "xlnet"])
def test_case_39_embeddings_grow_for_added_tokens(tmp_path, kind):
    labels, tokenizer = LABELS if kind in ("bert", "distilbert", "xlnet") else None, with_tokens("<|a|>", "<|b|>")
    path = small_model(tmp_path / "base", kind, tokenizer=tokenizer, auto=AutoModel if labels else None)
    line = refused(tokenizer, labels, path=str(path))
    assert line.startswith(f"model.path: '{path}' has embeddings for 300 tokens, the tokenizer has 302")
    assert "model.grow_embeddings=true" in line and "data.tokenizer=" in line
    notes, spec = [], Model(path=str(path), grow_embeddings=True)
    model, same = (build_model(spec, tokenizer, 0, 16, labels, notes) for _ in range(2))
    assert any(note.startswith("model.grow_embeddings: 2 rows ") and "302" in note for note in notes)
    embeddings, before = (
        model.get_input_embeddings().weight,
        AutoModel.from_pretrained(path).get_input_embeddings().weight,
    )
    assert embeddings.shape[0] == model.config.vocab_size == 302 and torch.equal(embeddings[:SIZE], before)
    assert torch.equal(embeddings, same.get_input_embeddings().weight) and bool(embeddings[SIZE:].any())
    head = model.get_output_embeddings()
    assert head is None or labels is not None or head.weight.shape[0] == 302
    ids = torch.tensor([[5, 300, 301, 7]])
    model(input_ids=ids).logits.sum().backward()
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    saved, saved_tokenizer = Model(path=str(tmp_path / "saved")), load_tokenizer(tmp_path / "saved")
    assert torch.equal(logits(build_model(saved, saved_tokenizer, 1, 16, labels)), logits(model))
    assert (
        model.config.tie_word_embeddings
        is build_model(saved, saved_tokenizer, 1, 16, labels).config.tie_word_embeddings
    )


def test_case_39_tied_embeddings_stay_tied(tmp_path):
    tokenizer = with_tokens("<|a|>")
    spec = Model(path=str(small_model(tmp_path, tokenizer=tokenizer)), grow_embeddings=True)
    model = build_model(spec, tokenizer, 0, 16)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_case_39_lora_would_not_train_new_rows(tmp_path):
    tokenizer = with_tokens("<|a|>")
    path = str(small_model(tmp_path, tokenizer=tokenizer))
    line = refused(tokenizer, path=path, lora={}, grow_embeddings=True)
    assert line.endswith("model.lora=null model.grow_embeddings=true")


def test_case_39_a_shape_that_is_too_small(tmp_path):
    line = refused(small_tokenizer(), shape={"model_type": "llama", **SHAPES["llama"], "vocab_size": 99})
    assert line.startswith("model.shape.vocab_size: 99 is smaller than the tokenizer's 300")


def test_rows_that_the_tokenizer_does_not_use_are_kept(tmp_path):
    notes, path = [], str(small_model(tmp_path, vocab_size=320))
    model = build_model(Model(path=path, grow_embeddings=True), small_tokenizer(), 0, 16, notes=notes)
    assert model.config.vocab_size == 320 and notes == []


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "qwen3"])
@pytest.mark.parametrize(
    ("special", "rows", "token"),
    [
        ({"eos_token": "<|endoftext|>", "pad_token": "!"}, 300, 1),
        ({"eos_token": "<|endoftext|>"}, 300, 0),
        ({"bos_token": "<|endoftext|>"}, 300, 0),
        ({}, 304, 300),  # a row of the model that no text can have
    ],
)
def test_a_classifier_that_looks_for_the_last_token_pads_by_one_that_no_text_ends_with(
    tmp_path, kind, special, rows, token
):
    tokenizer = bare(**special)
    path = small_model(tmp_path, kind, tokenizer=tokenizer, vocab_size=rows, pad_token_id=None, auto=AutoModel)
    model = build_model(Model(path=str(path)), tokenizer, 0, 16, LABELS)
    assert model.config.pad_token_id == token and Classification.of(model).pad_token == token


def test_a_missing_padding_token_is_refused(tmp_path):
    path = small_model(tmp_path / "gpt2", "gpt2", tokenizer=bare(), pad_token_id=None, auto=AutoModel)
    line = refused(bare(), LABELS, path=str(path))
    assert line.startswith("data.tokenizer: it has no padding token") and "gpt2" in line
    path = small_model(tmp_path / "bert", "bert", tokenizer=bare(), auto=AutoModel)  # where padding is masked
    assert build_model(Model(path=str(path)), bare(), 0, 16, LABELS).config.pad_token_id == 0


def test_a_model_without_a_table_of_tokens_fits_every_tokenizer():
    """transformers raises NotImplementedError for its input embeddings."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = CanineModel(CanineConfig(**sizes, num_hash_buckets=64, max_position_embeddings=64))
    assert vocabulary_of(model) is None and fit_vocabulary(model, small_tokenizer(), Model(path="x")) == []
    window = window_of(model)
    assert window is not None and window.tokens == 64


def test_a_slow_tokenizer_fits(tmp_path):
    slow = ByT5Tokenizer(extra_ids=0)
    path = small_model(tmp_path, tokenizer=slow, vocab_size=400)
    loaded = load_tokenizer(path)
    assert not loaded.is_fast and build_model(Model(path=str(path)), loaded, 0, 16).config.vocab_size == 400


@pytest.mark.parametrize(
    ("before", "added", "ends"),
    [(None, [5], 5), (0, [5], [0, 5]), (0, [0], 0), ([0, 5], [7, 5], [0, 5, 7]), ([3], [3], [3])],
)
def test_generation_ends_at_the_learned_tokens_too(tmp_path, before, added, ends):
    path = small_model(tmp_path)
    GenerationConfig(eos_token_id=before, temperature=0.6, do_sample=True).save_pretrained(path)
    model = build_model(Model(path=str(path)), small_tokenizer(), 0, 16)
    set_generation_ends(model, added)
    model.save_pretrained(tmp_path / "saved")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").generation_config
    assert saved.eos_token_id == ends and saved.temperature == 0.6
