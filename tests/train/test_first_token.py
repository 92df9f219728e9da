"""The last layer of a classifier that is computed for the first token only is the whole layer."""

import copy

import pytest
import torch
from conftest import ROOT
from small_models import SIZE, small_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForSequenceClassification

from hfbsz.errors import UserError
from hfbsz.measure.gradient_norms import SequenceNorms
from hfbsz.measure.utilization import flops_per_token
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.recipe.model_section import Model
from hfbsz.train.dropout import draw_fast
from hfbsz.train.first_token import KINDS, compute_first_token, weights_of_first_token
from hfbsz.train.layers import compile_layers, recompute_activations

SHAPE = {"data2vec-text": "roberta", "ernie": "bert"}  # whose small configuration is taken


def pair(kind, attention="sdpa", **changed):
    """A classifier in float64 with dropout, and its copy whose last layer is computed for the first token."""
    config = small_config(SHAPE.get(kind, kind), num_labels=3, **changed)
    config = type(AutoConfig.for_model(kind)).from_dict(config.to_dict())
    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_config(config, attn_implementation=attention).double().train()
    other = copy.deepcopy(plain)
    compute_first_token(other, Model(first_token=True))
    draw_fast(plain)
    draw_fast(other)
    return plain, other


def padded(rows=4, length=12):
    """Rows of 12, 11, … tokens, padded on the right."""
    ids = torch.randint(3, SIZE, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(length) < length - torch.arange(rows)[:, None]
    return {"input_ids": ids.masked_fill(~mask, 1), "attention_mask": mask.long()}


def gradients(model, rows):
    """The logits, and the gradients of their sum of squares by name, under one seed of dropout."""
    torch.manual_seed(3)
    logits = model(**rows).logits
    logits.square().sum().backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return logits.detach(), found


def assert_same(one, other, tolerance=1e-12):
    torch.testing.assert_close(one[0], other[0], rtol=tolerance, atol=tolerance)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(other[1][name], gradient, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_and_gradients_are_those_of_the_whole_layer_with_dropout(kind):
    plain, other = pair(kind)
    for rows in (padded(), padded(rows=1)):  # some attention masks are dropped without padding
        assert_same(gradients(plain, rows), gradients(other, rows))
    dropped = gradients(other, padded())[0]
    plain.eval(), other.eval()
    assert_same(gradients(plain, padded()), gradients(other, padded()))
    assert not torch.allclose(dropped, gradients(other, padded())[0])  # there was dropout
    assert plain.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_eager_attention_is_the_same_without_dropout(kind):
    plain, other = pair(kind, "eager")
    plain.eval(), other.eval()
    assert_same(gradients(plain, padded()), gradients(other, padded()))


def test_random_numbers_go_on_as_after_the_whole_layer():
    plain, other = pair("bert")
    states = []
    for model in (plain, other):
        gradients(model, padded())
        states.append(torch.rand(3))
    assert torch.equal(*states)


def test_fewer_operations_are_carried_out_and_counted():
    """Against torch's own counter of operations, as for the whole model (tests/measure/test_utilization.py)."""
    plain, other = pair("bert", "eager", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    rows = padded()
    rows["attention_mask"][:] = 1
    tokens = rows["input_ids"].numel()
    counts = []
    for model in (plain, other):
        with FlopCounterMode(display=False) as counter:
            gradients(model, rows)
        counts.append(counter.get_total_flops())
    assert counts[1] < 0.65 * counts[0]  # of 2 layers, one is nearly saved
    assert flops_per_token(other, 12, 1 / 12) * tokens == pytest.approx(counts[1], rel=0.01)
    assert flops_per_token(plain, 12, 1 / 12) * tokens == pytest.approx(counts[0], rel=0.01)
    names = {id(weight): name for name, weight in other.named_parameters()}
    saved = {names[id(weight)] for weight in weights_of_first_token(other)}
    assert all("encoder.layer.1." in name for name in saved) and not any("key" in name for name in saved)
    assert list(weights_of_first_token(plain)) == []


def test_recomputed_compiled_and_copied_layers_are_the_same():
    plain, other = pair("bert")
    expected = gradients(plain, padded())
    assert_same(expected, gradients(copy.deepcopy(other), padded()))
    recompute_activations(other)
    assert_same(expected, gradients(other, padded()))
    plain, other = pair("bert", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    expected = gradients(plain, padded())
    compile_layers(other)
    assert_same(expected, gradients(other, padded()))
    assert_same(gradients(plain, padded(3, 7)), gradients(other, padded(3, 7)))


def test_the_gradients_of_single_sequences_are_measured_in_it():
    plain, other = pair("roberta")
    found = []
    for model in (plain, other):
        norms = SequenceNorms(model)
        norms.open()
        gradients(model, padded())
        found.append(norms.take(4))
        norms.close()
    assert found[0].keys() == found[1].keys()
    for name, squares in found[0].items():
        torch.testing.assert_close(found[1][name], squares)


def test_low_precision_keeps_the_range_of_scores():
    plain, other = pair("bert")
    plain.float().eval(), other.float().eval()
    with torch.autocast("cpu", torch.bfloat16):
        one, two = (model(**padded()).logits.float() for model in (plain, other))
    torch.testing.assert_close(one, two, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("kind", ["distilbert", "modernbert", "deberta-v2", "albert", "mpnet"])
def test_other_kinds_are_computed_in_full(kind):
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(small_config(kind, num_labels=3)).eval()
    before = model(**padded()).logits
    compute_first_token(model, Model())
    assert torch.equal(model(**padded()).logits, before)
    with pytest.raises(UserError, match=rf"first_token: {kind} is not .*: model\.first_token=false"):
        compute_first_token(model, Model(first_token=True))


def test_a_language_model_is_refused(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"reads every token: model\.first_token=false"):
        resolve(load(["recipe=small_batch_pretrain", "model.first_token=true"]).recipe, 1, Facts(rows=5000))
