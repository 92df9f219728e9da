"""The laws' published examples, and what a plan makes of them."""

import pytest

from hfbsz.errors import UserError
from hfbsz.plan.explain import explain
from hfbsz.plan.laws import LAWS
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.law_name import NAMES
from hfbsz.recipe.load import load


def test_step_law():
    """Li et al. 2025: N = 7e9, D = 1.4e12: 9.35e-4 and 5.00 M tokens."""
    law = LAWS["step_law"]
    assert law.rate(7e9, 1.4e12) == pytest.approx(9.35e-4, rel=2e-3)
    assert law.batch(7e9, 1.4e12) == pytest.approx(5.00e6, rel=2e-3)


def test_deepseek():
    """DeepSeek LLM: C = 8.46e22: 4.25e-4 and 9.22 M tokens (C = 6·N·D)."""
    law, tokens = LAWS["deepseek"], 2e12
    size = 8.46e22 / 6 / tokens
    assert law.rate(size, tokens) == pytest.approx(4.25e-4, rel=2e-3)
    assert law.batch(size, tokens) == pytest.approx(9.22e6, rel=2e-3)


def test_power_lines():
    """Bergsma et al. 2025: D = 2.2e9: 115.8 sequences of 2,048 tokens."""
    assert LAWS["power_lines"].batch(1, 2.2e9) / 2048 == pytest.approx(115.8, rel=1e-3)


def plan(*words, parameters=None):
    given = ["duration=4Btok", "data.sequence_length=1024", *words]
    return resolve(load(given).recipe, 1, Facts(parameters=parameters))


def refused(*words, parameters=None):
    with pytest.raises(UserError) as caught:
        plan(*words, parameters=parameters)
    return caught.value.lines


def test_a_guessed_batch_is_the_nearest_power_of_two_whatever_the_processes():
    made = plan("batch.size=law:power_lines", parameters=2e8)
    assert made.largest_batch == 256  # 0.0306·(4e9)^0.383 = 145.6 sequences of 2,048 = 291 of 1,024
    text = explain(made)
    assert "0.0306·D^0.383" in text and "298k tokens" in text and "Bergsma et al. 2025" in text
    assert not made.warnings
    recipe = made.recipe
    assert {resolve(recipe, world, made.facts).largest_batch for world in (1, 8, 256)} == {256}


def test_a_guessed_rate_holds_at_its_laws_own_batch():
    made = plan("batch.size=law:step_law", "optim.lr=law:step_law", parameters=215_000_000)
    law = LAWS["step_law"]
    assert made.rate == law.rate(215e6, 4e9)
    assert made.reference * 1024 == pytest.approx(law.batch(215e6, 4e9))
    kappa = made.largest_batch / made.reference
    assert made.peak_rate(made.largest_batch) == pytest.approx(made.rate * kappa**0.5)
    assert load([f"batch.size={made.recipe.batch.size}"]).recipe.batch.size == made.recipe.batch.size


def test_outside_the_fit_the_plan_says_so():
    near = plan("batch.size=law:step_law", parameters=215_000_000)
    far = plan("batch.size=law:step_law", "duration=400Mtok", parameters=1_000_000)
    assert not near.warnings
    assert "4e+08 tokens, fitted on 2e+09 to 1e+11" in far.warnings[0] and "1e+06 parameters" in far.warnings[1]
    assert far.warnings[0] in explain(far)
    deep = plan("batch.size=law:deepseek", parameters=7_000_000_000)
    assert "1.68e+20 FLOPs, fitted on 1e+17 to 2e+19" in deep.warnings[0]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch.size=law:chinchilla"], "there are law:step_law, law:deepseek, law:power_lines"),
        (["batch.size=8seq", "optim.lr=law:power_lines"], "gives no learning rate"),
        (["batch.size=law:deepseek"], "set parameters=N"),
        (["batch.size=8seq", "optim.lr=law:step_law", "optim.name=muon"], "was fitted with AdamW, not muon"),
        (["batch.size=8seq", "optim.lr=law:step_law", "scaling.reference=8seq"], "has its own reference batch"),
        (["batch.size=law:step_law", "duration=300steps"], "write duration in tokens"),
        (["batch.size=law:step_law", "duration=2epochs"], "set train_rows=N"),
    ],
)
def test_what_a_law_cannot_do(words, message):
    parameters = None if "set parameters" in message else 215_000_000
    assert any(message in line for line in refused(*words, parameters=parameters))


def test_a_recipe_may_name_every_law_and_no_other():
    assert set(NAMES) == set(LAWS)
