"""Pretrained models of equal loss: which checkpoints are selected."""

from pathlib import Path

from hfbsz.experiment.handover import Candidate, match


def run(*losses: float) -> list[Candidate]:
    return [Candidate(10 * number, loss, Path(str(number))) for number, loss in enumerate(losses)]


def test_the_most_trained_checkpoints_that_agree_are_taken():
    chosen = match([run(6.0, 5.0, 4.51, 4.2), run(6.0, 5.0, 4.5, 4.4)], 0.02)
    assert [candidate.loss for candidate in chosen] == [4.51, 4.5]


def test_a_better_agreement_at_a_higher_loss_does_not_count_against_a_lower_loss_that_agrees():
    chosen = match([run(5.0, 4.21), run(5.0, 4.2)], 0.02)
    assert [candidate.loss for candidate in chosen] == [4.21, 4.2]


def test_where_none_agree_the_nearest_are_taken():
    chosen = match([run(5.0, 4.0), run(4.8, 4.3)], 0.02)
    assert [candidate.loss for candidate in chosen] == [5.0, 4.8]


def test_many_runs_of_many_checkpoints_take_no_time():
    runs = [run(*(6 - 0.1 * step + 0.005 * number for step in range(25))) for number in range(12)]
    chosen = match(runs, 0.06)
    assert max(candidate.step for candidate in chosen) == 240 and len(chosen) == 12
