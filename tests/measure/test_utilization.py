"""The operations of a token, and the peak of a device."""

import pytest
import torch
from conftest import TINY
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from hfbsz.measure.utilization import flops_per_token, peak_flops
from hfbsz.recipe.load import load
from hfbsz.run.measurements import learned_share
from hfbsz.train.setup import setup

SHAPE = {
    "vocab_size": 100,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LAYER = 16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32  # q, o; k, v of two heads; gate, up, down


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama_needs_6_operations_for_each_weight_of_a_product(tied):
    """The head counts once, tied or not; the embedding and the norms do not (PaLM, appendix B)."""
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=tied))
    assert flops_per_token(model, 0) == 6 * (3 * LAYER + 100 * 16)
    assert flops_per_token(model, 50) - flops_per_token(model, 0) == 12 * 3 * 16 * 50


def test_it_is_what_torch_counts():
    """Against torch's own counter of the operations of matrix products and attention, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    model = LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="eager"))
    rows, length = 2, 24
    tokens = torch.randint(0, 100, (rows, length))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=tokens).logits.sum().backward()
    # torch's attention in the eager form computes whole squares of scores, as the formula does
    assert flops_per_token(model, length) * rows * length == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_frozen_weights_need_no_gradient():
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))
    for weight in model.model.parameters():
        weight.requires_grad = False
    assert flops_per_token(model, 0) == 4 * 3 * LAYER + 6 * 100 * 16


def test_a_classifier_has_a_head_of_its_classes():
    model = AutoModelForSequenceClassification.from_config(LlamaConfig(**SHAPE, num_labels=3))
    assert flops_per_token(model, 0) == 6 * (3 * LAYER + 3 * 16)


def test_the_peak_of_a_cpu_is_measured():
    peak = peak_flops(torch.device("cpu"), "fp32")
    assert 1e9 < peak < 1e14 and peak_flops(torch.device("cpu"), "fp64") < peak


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA A100-SXM4-80GB", "fp64", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", None),
        ("Another GPU", "bf16", None),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_data_sheet(monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda"), precision) == peak


def test_a_mixture_of_experts_is_not_counted():
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    model.config.num_local_experts = 8
    assert flops_per_token(model, 10) is None


def test_the_head_is_needed_for_tokens_with_a_label(ragged):
    assert flops_per_token(LlamaForCausalLM(LlamaConfig(**SHAPE)), 0, 0.25) == 6 * (3 * LAYER + 0.25 * 100 * 16)
    assert learned_share(setup(load([TINY, f"data.files={ragged}"]).recipe)) == 1
