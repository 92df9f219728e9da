"""Models from shapes and from weights, language models and classifiers: their guarantees, and refusals in one line."""

import pytest
import torch
from small_models import logits, rows, same_logits, small_model, small_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model
from hfbsz.recipe.load import load
from hfbsz.train.model import _config, build_model, count_parameters
from hfbsz.train.pretrained import tokenizer_of

SIZES = {  # all weights, and those outside embeddings and head
    "tiny": (1.05e6, 0.79e6),
    "tiny_gpt2": (1.19e6, 0.79e6),
    "gpt2_124m": (124.5e6, 85.1e6),
    "smollm2_135m": (134.5e6, 106.2e6),
    "llama_360m": (361.8e6, 314.6e6),
    "qwen3_0_6b": (596.0e6, 440.5e6),
}
LABELS = ["rotten", "fresh"]


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Saves a small model of a kind once, and returns its folder."""
    saved = {}

    def folder(kind, **options):
        key = (kind, *options.items())
        if key not in saved:
            saved[key] = small_model(tmp_path_factory.mktemp(kind), kind, **options)
        return str(saved[key])

    return folder


def refused(tokenizer, labels=None, sequence_length=16, **fields) -> str:
    with pytest.raises(UserError) as caught:
        build_model(Model(**fields), tokenizer, 0, sequence_length, labels)
    (line,) = caught.value.lines
    return line


@pytest.mark.parametrize("preset", SIZES)
def test_a_preset_has_the_size_that_it_names(preset):
    spec = load([f"model={preset}"]).recipe.model
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(dict(spec.shape), {"vocab_size": 2048}))
    counts = model.num_parameters(), count_parameters(spec, 2048)
    assert counts == pytest.approx(SIZES[preset], rel=5e-3)


def test_the_vocabulary_does_not_enter_the_count():
    spec = load(["model=tiny"]).recipe.model
    assert count_parameters(spec, 2048) == count_parameters(spec, 50_000)


def test_a_model_that_cannot_be_counted_is_reported_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for path in (str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(UserError) as caught:
            count_parameters(load([f"model.path={path}"]).recipe.model, 2048)
        assert len(caught.value.lines) == 1 and "cannot be loaded" in caught.value.lines[0]


def test_bf16_weights_are_trained_in_float32(folders, tokenizer):
    saved, plain = folders("llama", dtype=torch.bfloat16), folders("llama")
    model = build_model(Model(path=saved), tokenizer, 0, 16)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    exact = AutoModelForCausalLM.from_pretrained(plain)
    pairs = zip(model.parameters(), exact.parameters(), strict=True)
    assert all(torch.equal(weight, other.to(torch.bfloat16).float()) for weight, other in pairs)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "distilbert"])
def test_labels_make_a_classifier(folders, tokenizer, kind, tmp_path):
    """From a language model's weights, or from a shape; saving and loading gives the same model."""
    path = folders(kind, labels=0 if kind != "distilbert" else 3)
    shape = {"model_type": kind, **load(["model=tiny"]).recipe.model.shape} if kind == "llama" else None
    for spec in [Model(path=path), *([Model(shape=shape | {"model_type": kind})] if shape else [])]:
        first, same, other = (build_model(spec, tokenizer, seed, 16, LABELS) for seed in (0, 0, 1))
        assert first.config.id2label == {0: "rotten", 1: "fresh"} and first.config.label2id["fresh"] == 1
        assert logits(first).shape == (3, 2) and torch.equal(logits(first), logits(same))
        assert not torch.equal(logits(first), logits(other))
        assert first.config.problem_type == "single_label_classification"
        first.save_pretrained(tmp_path)
        assert same_logits(AutoModelForSequenceClassification.from_pretrained(tmp_path), first)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_padding_does_not_move_a_classifier_that_looks_at_the_last_token(folders, tokenizer, kind):
    spec = Model(path=folders(kind, pad_token_id=None))
    model = build_model(spec, tokenizer, 0, 16, LABELS).eval()
    assert model.config.pad_token_id == tokenizer.pad_token_id
    plain = rows()
    padded = {
        "input_ids": torch.nn.functional.pad(plain["input_ids"], (0, 3), value=tokenizer.pad_token_id),
        "attention_mask": torch.nn.functional.pad(plain["attention_mask"], (0, 3)),
    }
    with torch.no_grad():
        assert torch.allclose(model(**padded).logits, model(**plain).logits, atol=1e-6)


def test_an_encoder_is_refused_as_a_language_model_and_a_decoder_is_not(folders, tokenizer):
    assert "bert attends to later tokens" in refused(tokenizer, path=folders("bert"))
    assert build_model(Model(path=folders("gpt_neox")), tokenizer, 0, 16).config.is_decoder is False


@pytest.mark.parametrize(
    ("fields", "labels", "message"),
    [
        ({"path": "{bert2}"}, None, "lacks weights of"),  # a classifier's folder holds no language model's head
        ({"path": "{pickled}"}, LABELS, "holds pickled weights (pytorch_model.bin)"),
        ({"path": "nowhere"}, LABELS, "model.path: 'nowhere' cannot be loaded"),
        ({"shape": {"model_type": "distilbert"}}, None, "transformers has no causal language model for 'distilbert'"),
        ({"shape": {"model_type": "mamba"}}, LABELS, "transformers has no classifier for 'mamba'"),
        ({}, None, "(model=tiny)"),
        ({"path": "{llama}"}, LABELS, "data.sequence_length: 512 is beyond the model's window of 256"),
    ],
)
def test_a_model_that_cannot_be_built_is_reported_in_one_line(folders, tokenizer, tmp_path, fields, labels, message):
    if fields.get("path", "").startswith("{"):
        pickled = tmp_path / "pickled"
        pickled.mkdir()
        AutoModelForCausalLM.from_pretrained(folders("llama")).config.save_pretrained(pickled)
        (pickled / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        paths = {"bert2": folders("bert", labels=2), "pickled": pickled, "llama": folders("llama")}
        fields = {"path": fields["path"].format(**paths)}
    length = 512 if "512" in message else 16
    assert message in refused(tokenizer, labels, length, **fields)


def test_weights_bring_their_tokenizer():
    assert tokenizer_of(Model(path="some/folder")) == "some/folder" and tokenizer_of(Model(shape={})) is None
