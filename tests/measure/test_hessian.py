"""Curvature and sharpness against what is known: a quadratic, a network's full Hessian, a rescaled pair of layers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import small_config
from torch import nn
from transformers import AutoModelForCausalLM

from hfbsz.data.batches import Batch
from hfbsz.measure import landscape, sharpness
from hfbsz.measure.hessian import Objective, estimate, largest_eigenvalues, trace

EIGENVALUES = torch.tensor([9.0, 4.0, 2.0, 1.0, *[0.1] * 16])


class Quadratic(nn.Module):
    """½ wᵀ Q diag(eigenvalues) Qᵀ w, with the weights in two parts."""

    def __init__(self, at=0.0, eigenvalues=EIGENVALUES):
        super().__init__()
        torch.manual_seed(0)
        size = len(eigenvalues)
        basis, _ = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64))
        self.matrix = (basis * eigenvalues.double()) @ basis.T
        self.one = nn.Parameter(torch.full((2, 3), at, dtype=torch.float64))
        self.other = nn.Parameter(torch.full((size - 6,), at, dtype=torch.float64))

    def forward(self):
        flat = torch.cat([self.one.flatten(), self.other])
        return flat @ self.matrix @ flat / 2


def quadratic(**more):
    batches = [SimpleNamespace(targets=3), SimpleNamespace(targets=5)]
    return Objective(Quadratic(**more), lambda model, batch: batch.targets * model(), batches)


def test_the_spectrum_of_a_quadratic():
    objective = quadratic(at=0.3)
    found = largest_eigenvalues(objective, count=3)
    assert found == pytest.approx([9.0, 4.0, 2.0], rel=0.01)
    total = trace(objective, seconds=0, probes=2000)
    assert total.value == pytest.approx(float(EIGENVALUES.sum()), rel=0.05) and total.samples == 2000
    assert abs(total.value - float(EIGENVALUES.sum())) < 5 * total.error
    assert largest_eigenvalues(objective, count=3) == found  # the same twice


def classifier(double=True, scale=1.0):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False))
    model = model.double() if double else model
    with torch.no_grad():
        model[0].weight *= scale
        model[2].weight /= scale
    return model


def rows(count=24):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (count,), generator=generator)


def objective_of(model, sizes=(24,)):
    inputs, labels = rows()
    batches = []
    for start, size in zip(np.cumsum([0, *sizes[:-1]]), sizes, strict=True):
        part = slice(int(start), int(start) + size)
        batches.append(Batch({"input_ids": inputs[part]}, labels[part], size, size))
    return Objective(
        model,
        lambda net, batch: F.cross_entropy(net(batch.inputs["input_ids"]), batch.labels, reduction="sum"),
        batches,
    )


def full_hessian(model):
    inputs, labels = rows()
    names, values = zip(*model.named_parameters(), strict=True)

    def loss(flat):
        parts = flat.split([value.numel() for value in values])
        weights = {name: part.view_as(value) for name, part, value in zip(names, parts, values, strict=True)}
        return F.cross_entropy(torch.func.functional_call(model, weights, (inputs,)), labels)

    return torch.autograd.functional.hessian(loss, torch.cat([value.detach().flatten() for value in values]))


def test_a_network_against_its_full_hessian():
    model = classifier()
    exact = full_hessian(model)
    objective = objective_of(model)
    assert largest_eigenvalues(objective, 2) == pytest.approx(
        torch.linalg.eigvalsh(exact).flip(0)[:2].tolist(), rel=0.01
    )
    vector = torch.randn(exact.shape[0], dtype=torch.float64)
    product = objective.flat(objective.product(objective.shaped(vector.numpy())))
    assert np.allclose(product, exact @ vector, rtol=1e-9, atol=1e-12)
    total = trace(objective, seconds=0, probes=2000)
    assert total.value == pytest.approx(float(exact.trace()), rel=0.05, abs=3 * total.error)


def test_the_split_into_micro_batches_changes_nothing():
    together, apart = (objective_of(classifier(), sizes) for sizes in ((24,), (5, 12, 7)))
    assert together.loss() == pytest.approx(apart.loss(), rel=1e-12)
    for one, other in zip(together.gradient(), apart.gradient(), strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-14)
    assert largest_eigenvalues(together) == pytest.approx(largest_eigenvalues(apart), rel=1e-3)
    assert sharpness.sam(together, 0.05) == pytest.approx(sharpness.sam(apart, 0.05), rel=1e-6)


def test_a_rescaled_pair_changes_plain_measures_and_not_adaptive_ones(monkeypatch):
    monkeypatch.setattr(sharpness, "_ADDED", 0.0)
    one, scaled = objective_of(classifier()), objective_of(classifier(scale=4.0))
    assert one.loss() == pytest.approx(scaled.loss(), rel=1e-12)  # the same function
    assert sharpness.adaptive_sam(scaled, 0.2) == pytest.approx(sharpness.adaptive_sam(one, 0.2), rel=1e-6)
    noises = [sharpness.under_noise(each, 0.03, samples=3) for each in (one, scaled)]
    assert noises[1].value == pytest.approx(noises[0].value, rel=1e-6)
    assert largest_eigenvalues(scaled)[0] > 2 * largest_eigenvalues(one)[0]
    assert abs(sharpness.sam(scaled, 0.05) / sharpness.sam(one, 0.05) - 1) > 0.5
    assert abs(sharpness.keskar(scaled) / sharpness.keskar(one) - 1) > 0.2


def test_weights_are_as_they_were():
    objective = objective_of(classifier())
    before = objective.flat(objective.weights)
    sharpness.sam(objective, 0.1)
    sharpness.adaptive_sam(objective, 0.1)
    sharpness.keskar(objective)
    sharpness.under_noise(objective, 0.1)
    landscape.along_random(objective)
    with pytest.raises(ZeroDivisionError), objective.moved(objective.gradient()):
        raise ZeroDivisionError
    assert np.array_equal(objective.flat(objective.weights), before)
    assert all(weight.grad is None for weight in objective.weights)


def test_first_order_rises_of_a_quadratic():
    objective = quadratic(at=0.3)
    gradient = objective.gradient()
    norm = math.sqrt(sum(float(part.square().sum()) for part in gradient))
    product = objective.product(gradient)
    curved = sum(float((one * other).sum()) for one, other in zip(gradient, product, strict=True)) / norm**2
    assert sharpness.sam(objective, 0.05) == pytest.approx(0.05 * norm + 0.5 * 0.05**2 * curved, rel=1e-9)


def test_lines_through_weight_space():
    objective = quadratic(at=0.3)
    points = landscape.between(objective, [torch.zeros_like(weight) for weight in objective.weights])
    by_position = dict(points)
    assert by_position[1.0] == pytest.approx(0, abs=1e-12) and by_position[0.0] == pytest.approx(objective.loss())
    assert by_position[0.5] == pytest.approx(objective.loss() / 4)  # a parabola
    random = dict(landscape.along_random(objective, seed=1))
    assert random[0.0] == pytest.approx(objective.loss()) and len(random) == 21
    weight = torch.randn(4, 7)
    direction = sharpness.random_direction(weight, torch.Generator().manual_seed(0))
    assert torch.allclose(direction.norm(dim=1), weight.norm(dim=1))


def test_a_language_model_has_second_derivatives():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(small_config("llama"), attn_implementation="sdpa")
    config = model.config
    tokens = torch.randint(0, config.vocab_size, (4, 12), generator=torch.Generator().manual_seed(0))
    batch = Batch({"input_ids": tokens[:, :-1]}, tokens[:, 1:], 44, 44)

    def loss_sum(net, part):
        logits = net(**part.inputs, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), part.labels.flatten(), reduction="sum")

    objective = Objective(model, loss_sum, [batch])
    (value,) = largest_eigenvalues(objective)
    gradient = objective.gradient()
    norm = math.sqrt(sum(float(part.square().sum()) for part in gradient))
    step = 1e-2 / norm
    with objective.moved(gradient, step):
        ahead = objective.gradient()
    with objective.moved(gradient, -step):
        behind = objective.gradient()
    product = objective.product(gradient)
    for one, plus, minus in zip(product, ahead, behind, strict=True):
        assert torch.allclose(one, (plus - minus) / (2 * step), rtol=0.05, atol=0.02 * float(one.abs().max()) + 1e-5)
    assert value > 0


def test_errors_of_means():
    assert estimate([1.0, 3.0]).error == pytest.approx(1.0) and estimate([1.0, 3.0]).value == 2.0
    with pytest.raises(ValueError, match="without targets"):
        Objective(nn.Linear(2, 2), lambda model, batch: 0, [SimpleNamespace(targets=0)])
