"""The noise scale in the norm of the optimizer, on gradients whose noise is known."""

import math

import pytest
import torch

from hfbsz.measure.dual_norms import DualNorm
from hfbsz.measure.noise_scale import DualMeasurement, NoiseScale
from hfbsz.train.muon import MATCHED_RMS, Muon


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (20, 20)])
def test_muons_matrices_are_measured_in_the_scaled_nuclear_norm_and_other_weights_in_l1(shape):
    generator = torch.Generator().manual_seed(0)
    matrix, vector = torch.nn.Parameter(torch.zeros(shape)), torch.nn.Parameter(torch.zeros(7))
    norm = DualNorm([Muon([matrix], lr=0.1), torch.optim.AdamW([vector])])
    gradient, other = torch.randn(shape, generator=generator), torch.randn(7, generator=generator)
    nuclear = torch.linalg.svdvals(gradient).sum() * MATCHED_RMS * math.sqrt(max(shape))
    torch.testing.assert_close(norm.part(matrix, gradient), nuclear, rtol=0.2, atol=0)
    torch.testing.assert_close(norm.part(vector, other), other.abs().sum())


def test_it_is_the_decrease_of_the_loss_for_a_step_of_the_optimizer():
    """To first order, per unit of the learning rate."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.nn.Parameter(torch.zeros(32, 64))
    muon = Muon([matrix], lr=1.0, weight_decay=0.0, momentum=0.0)
    matrix.grad = torch.randn(32, 64, generator=generator)
    gradient = matrix.grad.clone()
    muon.step()
    decrease = -(gradient * matrix.detach()).sum()
    assert float(decrease) == pytest.approx(float(DualNorm([muon]).part(matrix, gradient)), rel=1e-4)


@pytest.mark.parametrize("relative", [1 / 16, 1 / 4, 1, 4, 16])  # batch ÷ scale
@pytest.mark.parametrize(
    ("kind", "low", "high"), [("alike", 0.95, 2.2), ("unlike", 0.7, 1.05), ("low rank", 0.1, 1.05)]
)
def test_the_noise_is_exact_and_the_scale_is_within_the_stated_factors(kind, low, high, relative):
    """Gaussian gradients: entries of equal and of different ratios of noise to signal in ℓ1, and a matrix of rank 4 in
    the nuclear norm."""
    generator = torch.Generator().manual_seed(1)
    shape, scale = ((64, 64) if kind == "low rank" else (4000,)), 32.0
    weight = torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    norm = DualNorm([Muon([weight], lr=0.1)] if kind == "low rank" else [])

    def normal(*size):
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    truth = normal(64, 4) @ normal(4, 64) if kind == "low rank" else normal(*shape)
    spread = truth.abs() if kind == "alike" else torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
    single = sum(float(norm.part(weight, spread * normal(*shape))) for _ in range(40)) / 40
    spread *= float(norm.part(weight, truth)) * math.sqrt(scale) / single
    expected, half, estimate = (float(norm.part(weight, truth)) ** 2 * scale), relative * scale / 2, NoiseScale()
    for _ in range(30):
        one, other = (truth + spread * normal(*shape) / math.sqrt(half) for _ in range(2))
        difference = float(norm.part(weight, one - other)) ** 2 * half / 2
        whole = float(norm.part(weight, (one + other) / 2)) ** 2
        estimate.add(DualMeasurement(difference, whole, 1 / (2 * half)))
    assert estimate.noise == pytest.approx(expected, rel=0.03)
    assert low * scale < estimate.scale < high * scale


def test_a_gradient_that_is_not_finite_gives_no_exception():
    matrix = torch.nn.Parameter(torch.zeros(8, 12))
    gradient = torch.full((8, 12), math.nan)
    assert not math.isfinite(DualNorm([Muon([matrix], lr=0.1)]).part(matrix, gradient))


def test_a_measurement_that_is_not_finite_is_ignored():
    estimate = NoiseScale()
    estimate.add(DualMeasurement(math.nan, 1.0, 0.1))
    assert estimate.scale is None and estimate.count == 0
