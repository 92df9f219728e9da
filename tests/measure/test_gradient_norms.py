"""Norms read by hooks against backward passes of single sequences, for every family of the presets."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from hfbsz.measure.dual_norms import DualNorm
from hfbsz.measure.gradient_norms import MicroBatchNorms, SequenceNorms, squares_of_gradients

SMALL = {"vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
GROUPED = SMALL | {"num_key_value_heads": 1, "head_dim": 16}
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**GROUPED)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**GROUPED)),  # with norms of queries and keys
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**GROUPED)),  # scales of 1 + w
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=2, n_positions=32)),
    "bert": lambda: BertForSequenceClassification(BertConfig(**SMALL)),
}


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    model = FAMILIES[request.param]().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return model


def loss(model, rows):
    """The summed loss of rows of tokens."""
    logits = model(input_ids=rows).logits
    if logits.ndim == 2:
        return torch.nn.functional.cross_entropy(logits, rows[:, 0] % 2, reduction="sum")
    return torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")


def test_norms_of_sequences_and_of_micro_batches(model):
    rows = torch.randint(3, 60, (6, 12), generator=torch.Generator().manual_seed(1))
    sequences, micro = SequenceNorms(model), MicroBatchNorms(model, DualNorm([]))
    singles, whole, parts = [], [], []
    for row in rows:
        model.zero_grad()
        loss(model, row[None]).backward()
        singles.append(
            {name: squares_of_gradients(list(layer.parameters())) for name, layer in sequences.layers.items()}
        )
    model.zero_grad()
    sequences.open(), micro.open(with_difference=True)
    for part in rows.split(4):  # gradients accumulate over both
        before = [torch.zeros_like(weight) if weight.grad is None else weight.grad.clone() for weight in micro._weights]
        loss(model, part).backward()
        for name, squares in sequences.take(len(part)).items():
            expected = torch.stack([single[name].sum() for single in singles[: len(part)]])
            torch.testing.assert_close(squares, expected, rtol=1e-5, atol=1e-9)
        singles = singles[len(part) :]
        whole = [weight.grad - earlier for weight, earlier in zip(micro._weights, before, strict=True)]
        torch.testing.assert_close(micro.take(), sum(part.square().sum() for part in whole), rtol=1e-4, atol=0)
        parts.append(whole)
    difference = sum((one - other).abs().sum() for one, other in zip(*parts, strict=True))
    torch.testing.assert_close(micro.take_difference(), difference.square(), rtol=1e-4, atol=0)
    sequences.close(), micro.close()
    assert len(sequences.layers) >= 5
    loss(model, rows).backward()
    assert not sequences.take(6) and not micro._squares


def test_a_layer_applied_twice_counts_the_sum_of_its_gradients():
    torch.manual_seed(0)

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.map = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)

        def forward(self, states):
            return self.norm(self.map(self.norm(states)))

    model, states = Twice(), torch.randn(3, 5, 8)
    norms = SequenceNorms(model)
    norms.open()
    model(states).square().sum().backward()
    squares = norms.take(3)["norm"]
    norms.close()
    for row, found in zip(states, squares, strict=True):
        model.zero_grad()
        model(row[None]).square().sum().backward()
        torch.testing.assert_close(found, squares_of_gradients(list(model.norm.parameters())).sum())


def test_a_layer_without_a_row_for_each_sequence_is_left_out():
    layer = torch.nn.LayerNorm(8)
    norms = SequenceNorms(torch.nn.Sequential(layer))
    norms.open()
    layer(torch.randn(15, 8)).sum().backward()  # 3 sequences of 5 tokens in one dimension
    assert norms.take(3) == {}


def test_a_layer_with_further_inputs_is_left_out():
    class Gated(torch.nn.LayerNorm):
        def forward(self, states, gate):
            return super().forward(states) * gate

    layer = Gated(8)
    norms = SequenceNorms(torch.nn.Sequential(layer))
    norms.open()
    layer(torch.randn(3, 5, 8), torch.randn(3, 5, 8)).sum().backward()
    assert norms.take(3) == {}
