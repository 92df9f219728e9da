"""Dropout by 16 random bits: the same distribution, the same seeds, and attention that is otherwise sdpa's."""

import copy
import math

import pytest
import torch
from small_models import SIZE, small_config
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hfbsz.train import dropout
from hfbsz.train.dropout import Dropout, attention_shares, draw_fast, mask


@pytest.mark.parametrize("p", [0.1, 0.5, 0.001, 0.9])
def test_a_mask_drops_p_and_keeps_the_mean(p):
    torch.manual_seed(0)
    count = 2**22
    drawn = mask((2**11, 2**11), p, torch.empty(0))
    kept = round(float(drawn.max()) ** -1, 6)
    assert kept == pytest.approx(1 - p, abs=2**-17) and set(drawn.unique().tolist()) == {0.0, float(drawn.max())}
    spread = math.sqrt(p * (1 - p) / count)
    share = (drawn == 0).double().mean().item()
    assert abs(share - p) < 2**-17 + 4 * spread
    assert float(drawn.double().mean()) == pytest.approx(1, abs=4 * spread / (1 - p))
    zero = (drawn == 0).double() - share  # neighbors in a row, and the four numbers of one draw, are independent
    for lag in (1, 2, 3, 4, 2**11):
        flat = zero.flatten()
        assert abs(float((flat[lag:] * flat[:-lag]).mean())) < 5 * p * (1 - p) / math.sqrt(count)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (7,)])
def test_a_mask_has_any_shape_and_type(shape):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        drawn = mask(shape, 0.5, torch.empty(0, dtype=dtype))
        assert drawn.shape == torch.Size(shape) and drawn.dtype == dtype


def test_everything_can_be_dropped_but_nothing_becomes_infinite():
    assert mask((1000,), 0.999999, torch.empty(0)).isfinite().all()
    layer = Dropout(1.0).train()
    assert torch.equal(layer(torch.ones(2**18)), torch.zeros(2**18))


def test_the_generator_determines_masks():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = [mask((100,), 0.3, torch.empty(0)) for _ in range(2)]
    torch.set_rng_state(state)
    again = [mask((100,), 0.3, torch.empty(0)) for _ in range(2)]
    assert torch.equal(one[0], again[0]) and torch.equal(one[1], again[1]) and not torch.equal(*one)


def test_a_layer_is_the_identity_where_it_does_not_drop():
    layer, states = Dropout(0.4), torch.randn(10, 10, requires_grad=True)
    assert torch.equal(layer.eval()(states), states)
    assert torch.equal(Dropout(0.0).train()(states), states)
    dropped = layer.train()(states)
    dropped.sum().backward()
    assert torch.equal(states.grad == 0, dropped == 0) and 0.2 < (dropped == 0).double().mean() < 0.6


def pair(kind, auto=AutoModelForCausalLM, **changed):
    torch.manual_seed(0)
    plain = auto.from_config(small_config(kind, **changed), attn_implementation="sdpa").double().train()
    other = copy.deepcopy(plain)
    draw_fast(other)
    return plain, other


def tokens(rows=3, length=9):
    return torch.randint(3, SIZE, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("kind", "auto"), [("gpt2", AutoModelForCausalLM), ("bert", AutoModelForSequenceClassification)]
)
def test_attention_is_that_of_sdpa(monkeypatch, kind, auto, masked):
    """With masks of ones in both, logits and gradients are equal: causal or not, with padding or without."""
    plain, other = pair(kind, auto)
    ids = tokens()
    rows = {"input_ids": ids}
    if masked:
        rows["attention_mask"] = (torch.arange(9) < torch.tensor([9, 5, 1])[:, None]).long()
    used = []
    monkeypatch.setattr(dropout, "mask", lambda shape, p, like: used.append(shape) or like.new_ones(shape))
    logits = other(**rows).logits
    logits.square().sum().backward()
    expected = plain.eval()(**rows).logits
    expected.square().sum().backward()
    seen = rows.get("attention_mask", torch.ones_like(ids)).bool() if kind == "gpt2" else slice(None)
    torch.testing.assert_close(logits[seen], expected[seen], rtol=1e-11, atol=1e-11)
    assert sum(len(shape) == 4 for shape in used) == 2  # one attention in each of two layers
    if not masked:
        for name, weight in plain.named_parameters():
            torch.testing.assert_close(dict(other.named_parameters())[name].grad, weight.grad, rtol=1e-9, atol=1e-11)


def test_models_of_others_keep_their_dropout():
    """The attention function is registered for the process, and used by the modules of changed models only."""
    plain, _ = pair("gpt2")
    untouched, again = copy.deepcopy(plain), copy.deepcopy(plain)
    torch.manual_seed(2)
    one = untouched(input_ids=tokens()).logits
    torch.manual_seed(2)
    assert torch.equal(one, again(input_ids=tokens()).logits)
    assert all(type(module) is not Dropout for module in untouched.modules())
    monitored = [module for module in untouched.modules() if isinstance(module, nn.Dropout)]
    assert monitored


def test_a_query_that_attends_nothing_is_finite():
    shares = attention_shares(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 3, 4), torch.zeros(1, 1, 2, 3).bool())
    assert torch.allclose(shares, torch.full_like(shares, 1 / 3))


def test_training_with_it_ends_as_well():
    """The loss of a small classifier trained on one batch, with either dropout."""
    ends = []
    for model in pair("bert", AutoModelForSequenceClassification, num_labels=2):
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        torch.manual_seed(1)
        for _ in range(60):
            loss = model(input_ids=tokens(8), labels=torch.arange(8) % 2).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        ends.append(loss.item())
    assert max(ends) < 0.2
