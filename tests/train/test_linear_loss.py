"""The loss of a linear head in chunks of tokens equals that of its logits."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from conftest import ROOT, TINY, records
from small_models import SIZE, small_config
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import hfbsz.train.linear_loss as module
from hfbsz.errors import UserError
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.fields import Model
from hfbsz.recipe.load import load
from hfbsz.train.linear_loss import FusedHead, chunk_of, fused_head, linear_cross_entropy, token_losses
from hfbsz.train.setup import setup

CAUSAL = ("llama", "gpt2", "gpt_neox", "gemma2", "gemma3_text", "qwen3", "olmo2", "falcon", "bloom", "opt", "mamba")
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def _chunks(monkeypatch):
    monkeypatch.setitem(module._ROWS, "cpu", (7, 7))


def inputs(dtype=torch.float64, bias=True):
    torch.manual_seed(0)
    hidden, weight = torch.randn(3, 11, 16, dtype=dtype), torch.randn(50, 16, dtype=dtype)
    labels = torch.randint(0, 50, (3, 11))
    labels[0, :4] = labels[2, -1] = -100
    return hidden, weight, torch.randn(50, dtype=dtype) if bias else None, labels


def gradients(loss, hidden, weight, bias, labels, scale=0.25):
    leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight, bias) if leaf is not None]
    value = loss(*leaves, *([None] if bias is None else []), labels)
    (value * scale).backward()
    return value.detach(), [leaf.grad for leaf in leaves]


def plain(hidden, weight, bias, labels):
    logits = F.linear(hidden, weight, bias)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_loss_and_gradients_are_those_of_the_logits(bias, dtype, tolerance):
    given = inputs(dtype, bias)
    value, ours = gradients(linear_cross_entropy, *given)
    expected, theirs = gradients(plain, *given)
    assert torch.allclose(value, expected, rtol=tolerance)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.linalg.norm(one - other) < tolerance * torch.linalg.norm(other)


def test_the_compiled_operations_are_the_same(monkeypatch):
    compiled = torch.compile(module._elementwise, backend="aot_eager")
    monkeypatch.setattr(module, "_compiled", lambda dynamic: compiled)
    given = inputs()
    value, ours = gradients(partial(linear_cross_entropy, compiled=True), *given)
    expected, theirs = gradients(linear_cross_entropy, *given)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    assert all(torch.allclose(one, other, rtol=1e-12) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("bias", [True, False])
def test_losses_of_tokens_are_those_of_the_logits(bias):
    hidden, weight, bias, labels = inputs(bias=bias)
    losses, likeliest = token_losses(hidden, weight, bias, labels, None)
    logits = F.linear(hidden, weight, bias)
    expected = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    assert torch.allclose(losses, expected, rtol=1e-12)
    assert torch.equal(likeliest.bool(), logits.argmax(dim=-1) == labels)


def test_large_logits_do_not_overflow():
    hidden, weight, bias, labels = inputs(torch.float32)
    value, ours = gradients(linear_cross_entropy, hidden * 1e4, weight, bias, labels)
    assert torch.isfinite(value) and all(torch.isfinite(one).all() for one in ours)


def test_rows_without_targets_cost_nothing():
    hidden, weight, bias, labels = inputs()
    value, ours = gradients(linear_cross_entropy, hidden, weight, bias, torch.full_like(labels, -100))
    assert value == 0 and all((one == 0).all() for one in ours)


def test_a_second_backward_pass_is_refused():
    hidden, weight, bias, labels = inputs()
    loss = linear_cross_entropy(hidden, weight.requires_grad_(), bias, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="consumed by its first backward pass"):
        loss.backward()


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, bias, labels = inputs()
    leaf = hidden.clone().requires_grad_()
    linear_cross_entropy(leaf, weight, bias, labels).backward()
    _, (expected, *_) = gradients(plain, hidden, weight, bias, labels, scale=1)
    assert torch.allclose(leaf.grad, expected) and weight.grad is None


def test_under_autocast_the_products_are_in_bfloat16():
    hidden, weight, bias, labels = inputs(torch.float32)
    value, ours = gradients(partial(linear_cross_entropy, lower=torch.bfloat16), hidden, weight, bias, labels)
    expected, theirs = gradients(plain, hidden, weight, bias, labels)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(expected.item(), rel=2e-2)
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32 and torch.linalg.norm(one - other) < 2e-2 * torch.linalg.norm(other)


def test_a_run_in_bfloat16_has_the_products_of_the_head_in_bfloat16(request, monkeypatch, cache, ragged):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))
    request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    runs = [
        setup(
            load([TINY, f"data.files={ragged}", "precision=bf16", "duration=3steps", f"model.fused_loss={on}"]).recipe
        )
        for on in (False, True)
    ]
    products, linear = [], F.linear
    monkeypatch.setattr(
        module.F, "linear", lambda one, other, *bias: (products.append(one.dtype), linear(one, other, *bias))[1]
    )
    steps = [next(one.steps()) for one in runs]
    assert torch.bfloat16 in products
    assert steps[1].loss == pytest.approx(steps[0].loss, rel=1e-3)
    assert steps[1].grad_norm == pytest.approx(steps[0].grad_norm, rel=2e-2)


class Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operation returned."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_the_logits_never_exist_in_full():
    given = inputs()
    with Largest() as fused:
        gradients(linear_cross_entropy, *given)
    with Largest() as whole:
        gradients(plain, *given)
    assert whole.elements == 33 * 50 and fused.elements == 50 * 16  # the weight, not the logits


def test_chunks_are_large_enough_for_the_products():
    assert chunk_of(2048, torch.device("cpu")) == 7  # the bounds of this test
    assert chunk_of(50_257, torch.device("cuda")) == 4096  # a power of two
    assert chunk_of(100, torch.device("cuda")) == 65536


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("words", [[], ["data.attend=within", "data.pack=true", "model.attention=sdpa"]])
def test_a_run_is_that_of_the_logits(monkeypatch, cache, ragged, family, words):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))
    words = [*words, "precision=fp64", "duration=4steps", "optim.name=adamw"]
    words += ["model=tiny_gpt2"] if family == "gpt2" else []
    runs = [
        setup(load([TINY, f"data.files={ragged}", *words, f"model.fused_loss={on}"]).recipe) for on in (False, True)
    ]
    losses, norms = zip(
        *(
            [[getattr(step, name) for step in steps] for name in ("loss", "grad_norm")]
            for steps in [list(one.steps()) for one in runs]
        ),
        strict=True,
    )
    assert losses[0] == pytest.approx(losses[1], rel=1e-9) and norms[0] == pytest.approx(norms[1], rel=1e-7)
    evaluated = [one.evaluate(one.data.validation, range(8), 4).loss for one in runs]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-9)


def test_two_processes_are_one(hfbsz, ragged, tmp_path):
    words = [TINY, f"data.files={ragged}", "duration=6steps", "batch.micro_max=2", "precision=fp64", "threads=1"]
    losses = {}
    for processes, fused in ((1, False), (1, True), (2, True)):
        folder = tmp_path / f"{processes}{fused}"
        ended = hfbsz("pretrain.py", *words, f"model.fused_loss={fused}", f"output_dir={folder}", processes=processes)
        assert ended.code == 0, ended.err
        losses[processes, fused] = [step["train/loss"] for step in records(folder, "step")]
    assert losses[1, True] == pytest.approx(losses[1, False], rel=1e-9)
    assert losses[2, True] == pytest.approx(losses[1, False], rel=1e-9)


class Capped(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = 0.1 * torch.tanh(output.logits)
        return output


class Sliced(LlamaForCausalLM):
    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits[:, -8:]
        return output


def test_a_model_that_changes_its_logits_is_refused():
    config = LlamaConfig(vocab_size=50, initializer_range=1.0, **SMALL)
    with pytest.raises(ValueError, match="changes the logits of its head"):
        FusedHead(Capped(config))
    with pytest.raises(ValueError, match="reads the output of its head"):
        FusedHead(Sliced(config))
    FusedHead(LlamaForCausalLM(config))
    FusedHead(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=1, n_head=2)))


def test_a_classifier_has_no_vocabulary(monkeypatch):
    monkeypatch.chdir(ROOT)
    facts = Facts(rows=500, tokens_per_row=200.0)
    with pytest.raises(UserError, match="a classifier has no vocabulary"):
        resolve(load(["recipe=small_batch", "model.fused_loss=true"]).recipe, 1, facts)
    resolve(load(["recipe=small_batch"]).recipe, 1, facts)


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_loss_of_every_family_is_that_of_its_logits(kind):
    torch.manual_seed(0)
    model, notes = AutoModelForCausalLM.from_config(small_config(kind)).double().eval(), []
    tokens = torch.randint(3, SIZE, (3, 12))
    expected = plain_loss(model, tokens)
    head = fused_head(model, Model(), notes)
    assert (head is None) == (kind == "gemma2") == ("logits of its head" in "".join(notes))
    if head is None:
        assert torch.equal(plain_loss(model, tokens), expected)
        with pytest.raises(UserError, match=r"changes the logits of its head: model\.fused_loss=false"):
            fused_head(model, Model(fused_loss=True), [])
        return
    expected.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    loss = head.loss_sum(model, {"input_ids": tokens}, tokens)
    loss.backward()
    exact = 1e-5 if kind == "mamba" else 1e-11  # Mamba's logits are always float32
    assert loss.item() == pytest.approx(expected.item(), rel=exact)
    total = torch.linalg.norm(torch.stack([torch.linalg.norm(gradient) for gradient in gradients.values()]))
    for name, weight in model.named_parameters():
        if name in gradients:
            assert torch.linalg.norm(weight.grad - gradients[name]) <= exact * total, name
    assert torch.equal(plain_loss(model, tokens), expected)  # the logits are back


def plain_loss(model, tokens):
    logits = model(input_ids=tokens, use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum")


def test_a_head_with_lora_keeps_its_logits():
    from peft import LoraConfig, get_peft_model

    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, **SMALL))
    wrapped, notes = get_peft_model(model, LoraConfig(target_modules=["lm_head"])), []
    assert fused_head(wrapped, Model(), notes) is None and "no linear head" in notes[0]
    assert fused_head(wrapped, Model(fused_loss=False), notes) is None and len(notes) == 1


def test_tokens_without_a_label_take_no_time(monkeypatch):
    rows, linear = [], F.linear
    monkeypatch.setattr(module.F, "linear", lambda one, *rest: (rows.append(len(one)), linear(one, *rest))[1])
    hidden, weight, bias, labels = inputs()
    linear_cross_entropy(hidden, weight, bias, labels)
    assert sum(rows) == (labels != -100).sum() < labels.numel()


def test_gradients_of_bfloat16_weights_are_summed_in_float32():
    """As under FSDP2: a chunk of few tokens must not round the sum of all chunks."""
    hidden, weight, bias, labels = inputs(torch.float64)
    hidden, labels = hidden.repeat(40, 1, 1), labels.repeat(40, 1)
    low = [one.bfloat16() for one in (hidden, weight, bias)]
    _, ours = gradients(linear_cross_entropy, *low, labels)
    _, exact = gradients(plain, *(one.double() for one in low), labels)
    for one, other in zip(ours, exact, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.linalg.norm(one - other) < 5e-3 * torch.linalg.norm(other)
