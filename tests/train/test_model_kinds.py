"""Model families: each is built from its folder, trained, saved and loaded again, or refused in one line."""

import pytest
import torch
from small_models import SHAPES, logits, small_model, small_tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from hfbsz.data.rows import Row
from hfbsz.errors import UserError
from hfbsz.recipe.fields import Model
from hfbsz.train.fit import window_of
from hfbsz.train.model import build_model
from hfbsz.train.tasks.classification import Classification
from hfbsz.train.tasks.language_modeling import LanguageModeling

DECODERS = [
    *("llama", "gpt2", "gpt_neox", "gpt_neo", "gptj", "opt", "bloom", "mpt", "gemma2", "gemma3_text", "mistral"),
    *("qwen2", "qwen3", "phi3", "falcon", "stablelm", "mixtral", "qwen3_moe"),
]
LANGUAGE_MODELS = [*DECODERS, "mamba", "olmo2"]
ENCODERS = ["bert", "distilbert", "roberta", "xlm-roberta", "camembert", "mpnet", "longformer", "electra", "albert"]
CLASSIFIERS = [*DECODERS, *ENCODERS, "deberta-v2", "xlnet", "modernbert"]
EAGER = {"gemma2", "mamba", "xlnet", "deberta-v2", "mpnet", "longformer", "gpt_neo", "gptj", "bloom", "mpt"}
LABELS = ["rotten", "fresh"]
LENGTHS = (5, 11, 8)


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def row(length, seed, label=None):
    tokens = torch.randint(3, 300, (length,), generator=torch.Generator().manual_seed(seed)).numpy()
    return Row(tokens, tokens if label is None else [label])


def losses_of_training(model, task, rows):
    """The losses of four steps on the same rows."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        loss = task.loss_sum(model, task.collate(rows))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def refused(tokenizer, labels=None, sequence_length=16, **fields) -> str:
    with pytest.raises(UserError) as caught:
        build_model(Model(**fields), tokenizer, 0, sequence_length, labels)
    (line,) = caught.value.lines
    assert "github" not in line and "issue" not in line
    return line


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_case_17_a_language_model_of_each_family_trains(tmp_path, tokenizer, kind):
    notes = []
    model = build_model(Model(path=str(small_model(tmp_path / "base", kind))), tokenizer, 0, 16, notes=notes)
    losses = losses_of_training(model, LanguageModeling(0), [row(length, length) for length in LENGTHS])
    assert losses[-1] < losses[0]
    assert notes == ([f"model.attention: {kind} has no sdpa: eager is used"] if kind in EAGER else [])
    model.save_pretrained(tmp_path / "saved")
    assert torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), logits(model), atol=1e-5)


@pytest.mark.parametrize("kind", CLASSIFIERS)
def test_case_17_a_classifier_of_each_family_trains_and_padding_does_not_move_it(tmp_path, tokenizer, kind):
    path, notes = small_model(tmp_path / "base", kind, auto=AutoModel), []
    model = build_model(Model(path=str(path)), tokenizer, 0, 16, LABELS, notes)
    task = Classification.of(model)
    rows = [row(length, length, length % 2) for length in LENGTHS]
    losses = losses_of_training(model, task, rows)
    assert losses[-1] < losses[0]
    assert notes == ([f"model.attention: {kind} has no sdpa: eager is used"] if kind in EAGER else [])
    model.eval()
    with torch.no_grad():
        together = task.evaluate_batch(model, task.collate([*rows, None])).nll[:3]
        alone = torch.cat([task.evaluate_batch(model, task.collate([one])).nll for one in rows])
    assert torch.allclose(together, alone, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "tokens", "reserved", "changed"),
    [
        ("roberta", 64, 2, {}),
        ("xlm-roberta", 32, 2, {}),
        ("camembert", 64, 2, {}),
        ("mpnet", 128, 2, {}),
        ("longformer", 128, 2, {}),
        ("roberta", 62, 4, {"pad_token_id": 3}),
        ("bert", 512, 0, {}),
        ("bert", 300, 0, {"max_position_embeddings": 300}),  # as many positions as tokens
        ("gpt2", 256, 0, {}),
        ("opt", 64, 0, {}),
        ("mpt", 64, 0, {}),
        ("llama", 256, 0, {}),
        ("falcon", 2048, 0, {}),
    ],
)
def test_case_25_the_window_of_each_architecture(tmp_path, tokenizer, kind, tokens, reserved, changed):
    labels = LABELS if kind in CLASSIFIERS else None
    path = str(small_model(tmp_path / "base", kind, auto=AutoModel if labels else None, **changed))
    model = build_model(Model(path=path), tokenizer, 0, tokens, labels)
    assert window_of(model) == (tokens, reserved)
    if kind != "longformer":  # which pads a row to a multiple of its attention window
        ids = torch.randint(5, 300, (1, tokens))
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    line = refused(tokenizer, labels, tokens + 1, path=path)
    positions = f" ({tokens + reserved} positions, {reserved} of them reserved)" if reserved else ""
    beginning = f"data.sequence_length: {tokens + 1} is beyond the model's window of {tokens} tokens{positions}: "
    assert line.startswith(beginning) and f"data.sequence_length={tokens} or less" in line


@pytest.mark.parametrize(
    ("kind", "changed"), [("xlnet", {}), ("mamba", {}), ("bloom", {}), ("falcon", {"alibi": True})]
)
def test_case_17_models_without_a_window_take_any_length(tmp_path, tokenizer, kind, changed):
    labels = LABELS if kind == "xlnet" else None
    path = small_model(tmp_path / "base", kind, auto=AutoModel if labels else None, **changed)
    model = build_model(Model(path=str(path)), tokenizer, 0, 5000, labels)
    assert window_of(model) is None


@pytest.mark.parametrize("kind", ["t5", "bart"])
@pytest.mark.parametrize("labels", [None, LABELS])
def test_encoder_decoders_are_refused(tmp_path, tokenizer, kind, labels):
    path = small_model(tmp_path / kind, kind, labels=2, auto=AutoModelForSequenceClassification)
    line = refused(tokenizer, labels, path=str(path))
    assert line.startswith(f"model.path: '{path}': {kind} is an encoder-decoder")
    assert "is an encoder-decoder" in refused(tokenizer, labels, shape={"model_type": kind, **SHAPES[kind]})


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gemma3", "gemma3 takes inputs other than text (vision_config)"),
        ("clip", "clip takes inputs other than text (vision_config)"),
        ("vit", "transformers has no "),
        ("wav2vec2", "transformers has no "),
    ],
)
@pytest.mark.parametrize("labels", [None, LABELS])
def test_image_and_audio_models_are_refused(tmp_path, tokenizer, kind, message, labels):
    from transformers import AutoConfig

    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    line = refused(tokenizer, labels, path=str(tmp_path))
    assert message in line and ": use " in line


def test_quantized_weights_are_refused(tmp_path, tokenizer):
    quantization = {"quant_method": "gptq", "bits": 4}
    path = small_model(tmp_path, quantization_config=quantization)
    assert "quantized weights (gptq)" in refused(tokenizer, path=str(path))


@pytest.mark.parametrize("kind", ["xlnet", "roberta"])
def test_a_language_model_that_attends_to_later_tokens_is_refused(tmp_path, tokenizer, kind):
    """XLNet's configuration does not say so."""
    line = refused(tokenizer, path=str(small_model(tmp_path, kind)))
    assert f"{kind} attends to later tokens" in line


def test_a_model_that_mixes_padding_into_its_answers_is_refused(tmp_path, tokenizer):
    model = build_model(Model(path=str(small_model(tmp_path, "fnet", auto=AutoModel))), tokenizer, 0, 16, LABELS)
    with pytest.raises(UserError, match="fnet lets padding change its logits"):
        Classification.of(model)


def test_padding_is_on_the_left_for_a_model_that_reads_the_last_position(tmp_path, tokenizer):
    model = build_model(Model(path=str(small_model(tmp_path, "xlnet", auto=AutoModel))), tokenizer, 0, 16, LABELS)
    task = Classification.of(model)
    batch = task.collate([row(2, 0, 1), None, row(4, 1, 0)])
    assert task.left and batch.inputs["attention_mask"].tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]
    assert batch.labels.tolist() == [1, -100, 0] and batch.inputs["input_ids"][0, :2].tolist() == [0, 0]
