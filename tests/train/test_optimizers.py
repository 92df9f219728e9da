"""Every optimizer: which weights it updates and decays, and that a non-finite step changes nothing."""

import math

import pytest
import torch
from test_loop import Bench, _here, poisoned  # noqa: F401  (the fixture sets the cache folder)

NAMES = ["adamw", "sgd", "lamb", "muon", "adafactor", "schedule_free"]
RATES = {"sgd": "0.1", "muon": "3e-3", "adafactor": "3e-2", "lamb": "1e-2"}


def make_bench(ragged, name, *words):
    rate = RATES.get(name, "3e-3")
    return Bench(ragged, f"optim.name={name}", f"optim.lr={rate}", "schedule.shape=constant", *words)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns(ragged, name):
    """50 steps reduce the loss from that of a uniform prediction to well below."""
    losses = [step.loss for step in make_bench(ragged, name).steps()]
    assert losses[0] == pytest.approx(math.log(300), abs=0.2) and sum(losses[-5:]) / 5 < losses[0] - 0.7


@pytest.mark.parametrize("name", NAMES)
def test_a_non_finite_step_changes_no_weight(ragged, name):
    bench = make_bench(ragged, name)
    poisoned(bench, {3})
    before = None
    for step in bench.steps():
        weights = torch.cat([weight.detach().flatten().clone() for weight in bench.model.parameters()])
        if step.at.step == 4:
            assert torch.equal(weights, before) and step.skipped == 1
        before = weights
        if step.at.step == 6:
            break
    assert torch.isfinite(before).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_is_updated_once_and_decays_only_where_it_should(ragged, name):
    bench = make_bench(ragged, name, "model=tiny_gpt2")
    groups = bench.optimizer.param_groups
    parameters = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(parameters) == sorted(id(weight) for weight in bench.model.parameters())
    next(bench.steps())
    assert {group["lr"] for group in groups} == {bench.plan.step(0).learning_rate}
    assert {group["weight_decay"] for group in groups if not group["decays"]} == {0.0}


def test_muon_updates_only_hidden_matrices(ragged):
    bench = make_bench(ragged, "muon")
    muon, adam = bench.optimizer.parts
    names = {id(weight): name for name, weight in bench.model.named_parameters()}
    matrices = {names[id(weight)] for group in muon.param_groups for weight in group["params"]}
    rest = {names[id(weight)] for group in adam.param_groups for weight in group["params"]}
    assert matrices and all(".layers." in name and name.endswith("proj.weight") for name in matrices)
    assert "model.embed_tokens.weight" in rest and all("norm" in name or "embed" in name for name in rest)


def test_lambs_update_does_not_depend_on_the_gradients_scale(ragged):
    """You et al. 2020: the trust ratio normalises each layer's update."""
    updates = []
    for factor in (1.0, 1e3):
        bench = make_bench(ragged, "lamb", "optim.clip=null", "optim.eps=1e-30", "schedule.warmup=0%")
        start = [weight.detach().clone() for weight in bench.model.parameters()]
        plain = bench.task.loss_sum
        bench.task.loss_sum = lambda model, batch, plain=plain, factor=factor: plain(model, batch) * factor
        next(bench.steps())
        ends = bench.model.parameters()
        updates.append(torch.cat([(after - before).flatten() for after, before in zip(ends, start, strict=True)]))
    assert torch.linalg.norm(updates[0] - updates[1]) < 1e-5 * torch.linalg.norm(updates[0]) > 0


def test_schedule_free_evaluates_its_average_and_trains_on(ragged):
    bench = make_bench(ragged, "schedule_free")
    for step in bench.steps():
        if step.at.step == 20:
            break
    trained = [weight.detach().clone() for weight in bench.model.parameters()]
    with bench.optimizer.averaged():
        inside = [weight.detach().clone() for weight in bench.model.parameters()]
    after = list(bench.model.parameters())
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(trained, after, strict=True))
    moved = sum(float(torch.linalg.norm(a - b)) for a, b in zip(trained, inside, strict=True))
    assert moved > 1e-3


def test_only_fused_adamw_avoids_a_host_synchronization(ragged):
    class Flag:
        reads = 0

        def __bool__(self):
            Flag.reads += 1
            return True

    for name in NAMES:
        bench, Flag.reads = make_bench(ragged, name), 0
        if name != "adamw":
            bench.optimizer.step(Flag())
        assert bench.optimizer._waits == (name != "adamw") == bool(Flag.reads)
