"""Muon against torch.optim.Muon, and its orthogonalization against the singular value decomposition."""

import pytest
import torch

from hfbsz.train.muon import Muon, orthogonalize

SHAPES = [(16, 16), (16, 48), (48, 16), (16, 48), (16, 16)]


def matrices(seed, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=draw, dtype=dtype, requires_grad=True) for shape in SHAPES]


def test_steps_are_those_of_torch_to_its_precision():
    """torch iterates in bfloat16 (8 bits): 2 % of the update's size, and the same direction."""
    ours, theirs = matrices(0), matrices(0)
    start = [weight.detach().clone() for weight in ours]
    settings = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.9}
    optimizers = [Muon(ours, **settings), torch.optim.Muon(theirs, **settings, adjust_lr_fn="match_rms_adamw")]
    for step in range(5):
        for weights in (ours, theirs):
            for weight, gradient in zip(weights, matrices(step + 1), strict=True):
                weight.grad = gradient.detach()
        for optimizer in optimizers:
            optimizer.step()
    for one, other, before in zip(ours, theirs, start, strict=True):
        assert torch.linalg.norm(one - other) < 0.02 * torch.linalg.norm(other - before)


def test_the_iteration_is_torchs_own_in_a_higher_precision():
    from torch.optim._muon import _zeropower_via_newtonschulz

    matrix = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    theirs = _zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7).float()
    ours = orthogonalize(matrix[None])[0]
    assert torch.linalg.norm(ours - theirs) < 0.02 * torch.linalg.norm(theirs)


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_singular_values_come_near_one_and_directions_stay(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalize(matrix[None])[0]
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5 and values.max() < 1.3
    torch.testing.assert_close(
        u.mT @ found @ vt.mT, torch.diag(torch.diagonal(u.mT @ found @ vt.mT)), atol=1e-9, rtol=0
    )


def test_matrices_together_are_matrices_one_by_one():
    together = orthogonalize(torch.stack([weight.detach() for weight in matrices(0, torch.float64)[1::2]]))
    for one, weight in zip(together, matrices(0, torch.float64)[1::2], strict=True):
        torch.testing.assert_close(one, orthogonalize(weight.detach()[None])[0], rtol=1e-12, atol=1e-12)


def test_other_tensors_are_refused_and_missing_gradients_skipped():
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.zeros(3, requires_grad=True)], lr=0.1)
    weights = matrices(0)
    before = [weight.detach().clone() for weight in weights]
    optimizer = Muon(weights, lr=0.1)
    weights[0].grad = torch.ones_like(weights[0])
    optimizer.step()
    assert not torch.equal(weights[0], before[0]) and all(map(torch.equal, weights[1:], before[1:]))
    weights[0].grad.zero_()
    optimizer.step()  # a gradient of zeros is no division by zero
    assert torch.isfinite(weights[0]).all()
