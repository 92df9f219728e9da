import math
import re
from itertools import pairwise

import pytest

from hfbsz.errors import UserError
from hfbsz.plan.explain import explain
from hfbsz.plan.plan import Facts
from hfbsz.plan.resolve import check, check_environment, from_dict, resolve
from hfbsz.recipe.amounts import Amount
from hfbsz.recipe.load import load

RAMPS = {
    "fixed": ["batch.size=64seq"],
    "staged": ["batch.ramp=0:8 30%:32 200ktok:64"],
    "falling": ["batch.ramp=0:64 50%:16"],
    "doubling": ["batch.start=8seq", "batch.size=64seq", "batch.ramp=doubling:75%"],
    "linear": ["batch.ramp=linear:8,64,50%"],
    "linear fields": ["batch.start=8seq", "batch.size=64seq", "batch.ramp=linear:50%"],
    "held": ["batch.start=8seq", "batch.size=64seq", "batch.ramp=doubling:75%", "batch.lr=held"],
}
SEESAW = ["batch.start=8seq", "batch.size=64seq", "batch.ramp=seesaw:2"]


def plan(*words, world=1, rows=25_000):
    return resolve(load(["duration=500ktok", "scaling.reference=1024tok", *words]).recipe, world, Facts(rows=rows))


def refused(*words, **given):
    with pytest.raises(UserError) as caught:
        plan(*words, **given)
    return caught.value.lines


@pytest.mark.parametrize("world", [1, 8, 64, 1024])
def test_2048_sequences_on_many_processes(world):
    planned = plan("batch.size=2048seq", "duration=1Btok", world=world).step(0)
    assert planned.micro_batch * planned.accumulation * world == planned.global_batch == 2048


def test_2048_sequences_on_7_processes_names_the_nearest():
    (line,) = refused("batch.size=2048seq", world=7)
    assert "2044 or 2051" in line


@pytest.mark.parametrize("ramp", [*RAMPS, "seesaw"])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_walk_sums_to_the_budget_and_less_than_one_batch(ramp, world):
    made = plan(*RAMPS.get(ramp, SEESAW), world=world)
    walked = list(made.walk())
    assert walked[0].clock == 0 and walked[-1].next_clock >= made.total > walked[-1].clock
    assert all(a.next_clock == b.clock for a, b in pairwise(walked))
    assert len(walked) == made.steps
    for step in walked:
        assert step.global_batch == step.micro_batch * step.accumulation * world
        assert step == made.step(step.clock)


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("shape", ["cosine", "wsd", "linear"])
def test_the_end_of_the_schedule_under_every_ramp(ramp, shape):
    """rate ÷ rule multiplier of the last batch = floor × reference rate."""
    made = plan(*RAMPS[ramp], f"schedule.shape={shape}", "schedule.floor=0.1", "optim.lr=3e-3")
    last = list(made.walk())[-1]
    ratio = made.phases[0].batch / 8 if ramp == "held" else last.ratio
    assert last.learning_rate / math.sqrt(ratio) == pytest.approx(0.1 * 3e-3)


def test_seesaw_keeps_rate_times_root_batch_and_ends_at_the_root_of_the_floor():
    made = plan(*SEESAW, "schedule.floor=0.12", "optim.lr=3e-3")
    assert [phase.batch for phase in made.phases] == [8, 16, 32, 64]
    walked = [s for s in made.walk() if s.clock > made.shape.warmup]
    assert walked[-1].learning_rate == pytest.approx(3e-3 * math.sqrt(0.125))
    inside = [s for s in walked if made.batch_at(s.next_clock) == s.global_batch]
    assert {round(s.learning_rate * math.sqrt(s.global_batch), 9) for s in inside} == {round(3e-3 * math.sqrt(8), 9)}


@pytest.mark.parametrize(
    ("shape", "cut", "saved"),
    [("quarter_cosine", 2, 0.220), ("quarter_cosine", 1.1, 0.338), ("cosine", 2, 0.378), ("cosine", 1.1, 0.479)],
)
def test_seesaw_saves_the_published_steps(shape, cut, saved):
    made = plan(
        "batch.start=1024seq", "batch.size=1Bseq", f"batch.ramp=seesaw:{cut}", "duration=100Mseq", "schedule.floor=0",
        "schedule.warmup=0seq", f"schedule.shape={shape}", "batch.micro_max=1", rows=None,
    )  # fmt: skip
    assert 1 - made.steps / (made.total / 1024) == pytest.approx(saved, abs=5e-4)


def test_a_step_takes_its_batch_before_and_its_rate_after():
    made = plan(
        "batch.ramp=0:8 100seq:16",
        "schedule.shape=linear",
        "schedule.warmup=0seq",
        "schedule.floor=0",
        "scaling.rule=none",
    )
    assert made.step(96).global_batch == 8 and made.step(104).global_batch == 16
    assert made.step(0).learning_rate == pytest.approx(3e-3 * (1 - 8 / made.total))


def test_decisions_override_the_ramp_from_their_clock_on():
    made = plan("batch.size=8seq")
    assert [made.step(clock, [(80, 16), (160, 32)]).global_batch for clock in (72, 80, 160)] == [8, 16, 32]
    assert made.step(80, [(80, 16)]).learning_rate > made.step(72).learning_rate * 1.3


def test_rate_and_weight_decay_follow_the_ramp_or_are_held():
    follow, held = plan(*RAMPS["doubling"]), plan(*RAMPS["held"])
    late = follow.phases[-1].clock
    assert follow.step(late).learning_rate / held.step(late).learning_rate == pytest.approx(math.sqrt(8))
    assert follow.step(late).weight_decay == pytest.approx(0.1 * 8 / math.sqrt(8))
    assert held.step(late).weight_decay == pytest.approx(0.1 * 8)
    assert plan(*RAMPS["doubling"], "scaling.weight_decay=keep").step(late).weight_decay == 0.1


def test_beta2_takes_the_mean_ratio_once():
    made = plan(*RAMPS["doubling"], "scaling.beta2=half_life", "optim.betas=[0.9,0.999]")
    walked = list(made.walk())
    mean = sum(s.ratio * s.global_batch for s in walked) / sum(s.global_batch for s in walked)
    (betas,) = {step.betas for step in walked}
    assert betas == pytest.approx((0.9, 0.999**mean))


def test_one_micro_batch_serves_every_phase():
    assert plan(*RAMPS["doubling"], "batch.micro_max=6").micro_batch == 4
    made = plan("batch.ramp=0:22 50%:44", "batch.micro_max=8")
    assert made.micro_batch == 2 and "22→24, 44→48" in made.warnings[0]


def test_steps_epochs_and_tokens_are_one_clock():
    assert plan("batch.size=8seq", "duration=300steps").steps == 300
    assert plan(*RAMPS["doubling"], "duration=300steps").steps == 300
    assert plan("batch.size=8seq", "duration=300steps", "schedule.warmup=200steps").steps == 300
    wsd = ["schedule.shape=wsd", "schedule.warmup=10steps", "schedule.decay=50steps"]
    assert plan("batch.size=8seq", "duration=100steps", *wsd).steps == 100
    assert plan("batch.size=8seq", "duration=2epochs", rows=1000).total == 2000
    assert plan("batch.size=8192tok", "duration=128ktok").step(0).global_batch == 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["batch.size=100tok"], "128 tokens (1 sequence)"),
        (["batch.ramp=0:8 50%:16 20%:32"], "thresholds must rise"),
        (["batch.ramp=0:8 50%:16", "batch.size=32seq"], "not the largest batch of the ramp"),
        (["batch.size=8seq", "optim.betas=[0.99,0.95]"], "β1²"),
        (["batch.size=8seq", "schedule.warmup=90%", "schedule.shape=wsd"], "shorten them"),
        (["batch.size=8seq", "duration=10%"], "duration: '10%' has no total"),
        (["batch.size=8seq", "batch.start=4seq"], "needs a ramp"),
        (["batch.size=64seq", "batch.ramp=doubling:75%"], "needs a first batch"),
        ([*SEESAW, "scaling.rule=none"], "scaling.rule=sqrt"),
        ([*SEESAW, "schedule.shape=constant"], "decaying schedule.shape"),
        (["batch.start=64seq", "batch.size=8seq", "batch.ramp=doubling:75%"], "only grows"),
        (["batch.size=8seq", "scaling.reference=0tok"], "scaling.reference: '0 tokens' is not above 0"),
        (["batch.size=0seq"], "not a whole number above 0"),
        (
            ["batch.size=3steps"],
            "batch.size: '3 steps' is in steps, but a batch is a number of sequences or tokens: write 64seq",
        ),
        ([], "batch.size: not set"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words, message):
    lines = refused(*words)
    assert len(lines) == 1 and message in lines[0]


def test_a_corpus_below_one_batch_is_refused_and_epochs_are_told():
    assert "fewer than one batch" in refused("batch.size=64seq", rows=63)[0]
    assert any("overfitting" in warning for warning in plan("batch.size=64seq", rows=1000).warnings)
    with pytest.raises(UserError, match="rows=N"):
        plan("batch.size=8seq", "duration=2epochs", rows=None)


def test_the_launchers_accumulation_must_be_the_plans():
    made, ramp = plan("batch.size=64seq"), plan(*RAMPS["doubling"])
    name = "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"
    check_environment(made, {}), check_environment(made, {name: "1"}), check_environment(made, {name: "8"})
    filled = plan(*RAGGED, "batch.micro_tokens=512")
    check_environment(filled, {}), check_environment(filled, {name: "1"})
    for wrong in (made, {name: "4"}), (ramp, {name: "8"}), (filled, {name: "8"}):
        with pytest.raises(UserError, match="contradicts the plan"):
            check_environment(*wrong)


def test_intervals():
    made = plan("batch.size=8seq")
    by_share = [
        s.next_clock for n, s in enumerate(made.walk(), 1) if made.due(Amount.parse("25%"), n, s.clock, s.next_clock)
    ]
    assert len(by_share) == 4 and by_share[-1] >= made.total
    by_steps = [
        n for n, s in enumerate(made.walk(), 1) if made.due(Amount.parse("100 steps"), n, s.clock, s.next_clock)
    ]
    assert by_steps[:2] == [100, 200] and by_steps[-1] == made.steps
    assert not made.due(Amount.parse("0%"), 1, 0, 8)


def test_ragged_rows_are_converted_by_their_mean_and_marked():
    recipe = load(["data.pack=false", "batch.size=1024tok", "duration=32ktok"]).recipe
    made = resolve(recipe, 1, Facts(rows=9000, tokens_per_row=31.7))
    assert made.step(0).global_batch == round(1024 / 31.7) and "≈" in explain(made)


RAGGED = ["data.pack=false", "batch.size=64seq"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*RAMPS["doubling"], "data.pack=false", "batch.by_length=true"], "take batch.ramp=null"),
        (["batch.size=64seq", "batch.by_length=true"], "take data.pack=false, or batch.by_length=false"),
        (["batch.size=64seq", "batch.micro_tokens=512"], "take data.pack=false, or batch.micro_max"),
    ],
)
def test_what_rows_of_like_length_cannot_go_with_is_told_in_a_line_before_the_data(words, message):
    (line,) = refused(*words)
    assert message in line
    with pytest.raises(UserError, match=re.escape(line)):
        check(load(["duration=500ktok", "scaling.reference=1024tok", *words]).recipe, 1)


def test_micro_batches_of_tokens_are_said_in_words_and_only_divide_over_processes():
    """As many as fill the tokens: no number of the plan depends on micro_max, and none is made up."""
    words = [*RAGGED, "batch.micro_tokens=2048", "batch.by_length=true"]
    made = plan(*words, "batch.micro_max=7", world=4)
    assert made.step(0).micro_batch is made.step(0).accumulation is None and not made.warnings[1:]
    text = explain(made)
    assert "16 sequences × processes 4 = 64 sequences" in text and "micro     ≤ 2,048 tokens with padding" in text
    assert "blocks of 16 batches are sorted by length" in text and "accumulation" not in text
    assert from_dict(made.to_dict()) == made and made.steps == plan(*RAGGED, world=4).steps
    assert "60 or 65" in refused(*words, world=5)[0]
    ramp = plan("data.pack=false", "batch.micro_tokens=512", "batch.ramp=linear:8,64,50%", world=2)
    assert all(phase.batch % 2 == 0 for phase in ramp.phases) and "variable" in explain(ramp)


def test_micro_batches_of_tokens_do_not_make_another_run():
    digests = [
        load([*RAGGED, *words]).recipe.digest()
        for words in ([], ["batch.micro_tokens=512"], ["batch.micro_max=2"], ["batch.by_length=true"])
    ]
    assert digests[0] == digests[1] == digests[2] != digests[3]


def test_a_plan_comes_back_from_its_json():
    made = plan(*RAMPS["doubling"], world=4)
    assert from_dict(made.to_dict()) == made


def test_explain_shows_the_equation_the_rule_and_its_source():
    text = explain(plan(*RAMPS["doubling"], world=4))
    for part in (
        "micro 2 × accumulation 8 × processes 4 = 64 sequences",
        "Malladi et al. 2022",
        "κ = 1 → 8",
        "Wang & Aitchison",
    ):
        assert part in text


def test_lamb_keeps_its_published_table():
    """You et al. 2020 (recalled): 5e-3·√(B/32768) and a warmup share of 0.2·B/32768: 6.25e-4 and 1/320 at 512."""
    words = ["optim.name=lamb", "optim.lr=5e-3", "scaling.reference=32768seq", "schedule.warmup=20%"]
    words += ["scaling.warmup=steps", "duration=1000000seq", "scaling.weight_decay=keep"]
    for batch, rate, share in ((32768, 5e-3, 1 / 5), (4096, 5e-3 / 8**0.5, 1 / 40), (512, 6.25e-4, 1 / 320)):
        made = plan(*words, f"batch.size={batch}seq", rows=None)
        assert made.peak_rate(batch) == pytest.approx(rate)
        assert made.shape.warmup / made.total == pytest.approx(share)
    assert "warmup grows with κ" in explain(made) and "rule sqrt: η·√κ, You et al. 2020" in explain(made)


def test_a_warmup_that_outgrows_the_run_is_refused():
    words = ["scaling.warmup=steps", "schedule.warmup=20%", "batch.size=64seq"]  # κ = 8
    assert "warmup and decay take" in refused(*words)[0]


def test_sde_sets_betas_and_eps_once_from_the_mean_ratio():
    made = plan("scaling.rule=sde", "optim.betas=[0.9,0.99]", "batch.size=32seq")
    assert made.betas == pytest.approx((0.6, 0.96)) and made.eps == pytest.approx(5e-9)
    assert made.step(0).betas == made.betas and made.peak_rate(32) == pytest.approx(2 * 3e-3)
    ramp = plan("scaling.rule=sde", "optim.betas=[0.9,0.99]", *RAMPS["doubling"], "batch.size=32seq")
    assert ramp.betas[1] == pytest.approx(1 - ramp.mean_ratio * 0.01) and 1 < ramp.mean_ratio < 4


@pytest.mark.parametrize(
    ("optimizer", "rule", "source"),
    [("adamw", "sqrt", "Malladi"), ("sgd", "linear", "Goyal"), ("lamb", "sqrt", "You et al. 2020")]
    + [(name, "sqrt", "assumed: no rule is established") for name in ("muon", "adafactor", "schedule_free")],
)
def test_every_optimizer_has_a_rule_of_its_own(optimizer, rule, source):
    made = plan(f"optim.name={optimizer}", "batch.size=32seq", "schedule.shape=constant")
    assert made.rule.name == rule and source in explain(made)
    named = explain(plan(f"optim.name={optimizer}", "scaling.rule=linear", "batch.size=32seq"))
    assert ("assumed: no rule is established" in named) == source.startswith("assumed") and "Goyal" in named


def test_noise_and_surge_take_the_noise_scale_in_tokens_or_sequences():
    for rule in ("noise", "surge"):
        words = [f"scaling.rule={rule}", "batch.size=32seq"]
        one, other = (plan(*words, f"scaling.noise_scale={amount}") for amount in ("64seq", "8192tok"))
        assert one.rule.noise == other.rule.noise == 8 and "B_n = 64 sequences" in explain(one)
    assert plan("scaling.rule=noise", "scaling.noise_scale=64seq", "batch.size=8seq").rule.exponent == 0.5
    words = ["scaling.rule=noise", "scaling.noise_scale=64seq", "batch.size=8seq", "optim.name=sgd"]
    assert plan(*words).rule.exponent == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scaling.rule=noise"], "scaling.noise_scale=120seq"),
        (["scaling.rule=noise", "scaling.noise_scale=3steps"], "'3 steps' is in steps"),
        (["scaling.rule=sqrt", "scaling.noise_scale=64seq"], "does not use it"),
        (["scaling.rule=sqrt", "scaling.exponent=0.4"], "the rule sqrt has no exponent"),
        (["scaling.rule=sde", "scaling.beta2=half_life"], "sets the betas itself"),
        (["scaling.rule=sde", "optim.name=lamb"], "derived for Adam, not lamb"),
        (["scaling.rule=sde", "batch.size=128seq"], "κ(1−β) = 1.6 is not below 1"),
        (["optim.name=sgd", "scaling.beta2=half_life"], "sgd has no β2"),
        (["batch.start=8seq", "batch.ramp=seesaw:2", "scaling.rule=power"], "needs a decaying"),
    ],
)
def test_rules_that_do_not_fit(words, message):
    assert any(message in line for line in refused("batch.size=64seq", *words))


@pytest.mark.parametrize(
    "words",
    [
        ["duration=3epochs", "batch.size=64seq"],
        ["duration=2epochs", "batch.ramp=0:8 1epochs:16 50Mtok:32"],
        ["duration=1Mtok", "schedule.warmup=0.5epochs", "batch.size=64seq"],
        ["data.pack=false", "duration=500ktok", "batch.size=1000tok"],
        ["data.pack=false", "duration=2epochs", "batch.size=1000tok", "schedule.warmup=0.5epochs"],
        [
            "data.pack=false",
            "data.sequence_length=1024",
            "duration=1Mtok",
            "schedule.warmup=200steps",
            "batch.size=8seq",
        ],
        ["data.pack=false", "data.sequence_length=1024", "duration=1Mtok", "batch.size=400tok"],
        ["duration=1epochs", "batch.size=law:deepseek", "optim.lr=law:deepseek"],
        ["duration=300steps", *RAMPS["doubling"]],
    ],
)
def test_what_only_the_data_decides_is_not_refused_before_it_is_read(words):
    check(load(words).recipe, 1)


def test_what_no_data_can_mend_is_refused_before_it_is_read():
    for words in (["batch.size=7seq"], ["batch.size=64seq", "scaling.rule=noise"], ["batch.size=8seq", "duration=5%"]):
        with pytest.raises(UserError):
            check(load(words).recipe, 2)


def test_a_plan_of_very_many_phases_is_told_in_a_bounded_table():
    words = ["recipe=debug", "batch.start=8seq", "batch.size=4096seq", "batch.ramp=linear:90%", "batch.micro_max=1"]
    plan = resolve(load([*words, "duration=300Mtok"]).recipe, 1)
    told = explain(plan).splitlines()
    assert len(plan.phases) > 500 and len(told) < 45
    assert f"          … {len(plan.phases) - 24:,} more phases …" in told
    assert any(f"  {plan.phases[-1].batch:,}  " in line for line in told)
