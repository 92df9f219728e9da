"""Layers that are compiled, or whose activations are recomputed, train the same."""

from functools import partial

import pytest
import torch
from conftest import ROOT, TINY
from small_models import SIZE, small_config
from torch._dynamo.utils import counters
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForCausalLM

from hfbsz.errors import UserError
from hfbsz.recipe.load import load
from hfbsz.train.layers import compile_layers, layers_of, recompute_activations
from hfbsz.train.linear_loss import FusedHead
from hfbsz.train.setup import setup


def built(kind="llama", **changed):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(small_config(kind, **changed)).train()


def backward(model, rows=4):
    """A loss with its gradients, and the bytes that the forward pass keeps for the backward pass."""
    kept = []
    tokens = torch.randint(3, SIZE, (rows, 12), generator=torch.Generator().manual_seed(1))
    torch.manual_seed(3)
    with saved_tensors_hooks(lambda tensor: (kept.append(tensor.nbytes), tensor)[1], lambda tensor: tensor):
        loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
    loss.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return loss.item(), gradients, sum(kept)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_recomputed_activations_give_the_same_gradients_bit_for_bit(kind):
    changed = {"attention_dropout": 0.1} if kind == "llama" else {}  # gpt2 has dropout by default
    plain, other = built(kind, **changed), built(kind, **changed)
    recompute_activations(other)
    loss, gradients, kept = backward(plain)
    again, regained, less = backward(other)
    assert again == loss and less < 0.5 * kept
    assert all(torch.equal(regained[name], gradient) for name, gradient in gradients.items())


def test_a_model_that_cannot_recompute_is_refused():
    model = built()
    type(model).supports_gradient_checkpointing, before = False, type(model).supports_gradient_checkpointing
    try:
        with pytest.raises(UserError, match="activation_checkpointing: LlamaForCausalLM does not support it"):
            recompute_activations(model)
    finally:
        type(model).supports_gradient_checkpointing = before


def test_a_model_without_layers_cannot_be_compiled():
    with pytest.raises(UserError, match=r"model\.compile: Linear names no layers"):
        compile_layers(torch.nn.Linear(2, 2))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_equal_layers_share_one_compilation_and_the_number_of_micro_batches_needs_no_other(kind):
    torch._dynamo.reset()
    counters.clear()
    depth = {"n_layer": 10} if kind == "gpt2" else {"num_hidden_layers": 10}
    model, plain = built(kind, **depth), built(kind, **depth)
    head = FusedHead(model)
    compile_layers(model, partial(torch.compile, backend="aot_eager"))
    tokens = torch.randint(3, SIZE, (4, 12))
    for accumulation in (1, 4, 2):
        for _ in range(accumulation):
            torch.manual_seed(3)
            loss = head.loss_sum(model, {"input_ids": tokens}, tokens)
            loss.backward()
        model.zero_grad()
        assert counters["stats"]["unique_graphs"] == 1
    torch.manual_seed(3)
    expected = plain(input_ids=tokens, use_cache=False).logits.log_softmax(-1).gather(-1, tokens[..., None]).sum()
    if kind != "gpt2":  # with dropout, whose random numbers are drawn in another order
        assert loss.item() == pytest.approx(-expected.item(), rel=1e-5)
    assert len(layers_of(model)) == 10


@pytest.mark.parametrize("word", ["model.activation_checkpointing=true", "model.compile=true"])
def test_a_run_is_the_same(monkeypatch, cache, ragged, word):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))
    monkeypatch.setattr("hfbsz.train.model.compile_layers", partial(compile_layers, compiler=eager))
    words = [TINY, f"data.files={ragged}", "precision=fp64", "duration=4steps", "measure.noise.every=1step"]
    runs = [setup(load([*words, *more]).recipe) for more in ([], [word])]
    steps = [list(one.steps()) for one in runs]
    for name in ("loss", "grad_norm"):
        numbers = [[getattr(step, name) for step in each] for each in steps]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-9), name
    names = [{name.partition("/")[0] for name in each.model.state_dict()} for each in runs]
    assert names[0] == names[1]


eager = partial(torch.compile, backend="aot_eager")
