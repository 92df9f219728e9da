"""Long work on the console, where there is no terminal."""

import io

from hfbsz.report.console import Console


def test_off_a_terminal_long_work_says_how_far_it_is_and_how_long_it_takes(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("hfbsz.report.console.time.monotonic", lambda: now[0])
    out = io.StringIO()
    console = Console(out)
    for second in range(40):
        now[0] += 1
        console.work("tokenizing", second, 40)
    console.end_work()
    first, *later = out.getvalue().splitlines()
    assert first == "tokenizing …" and len(later) == 3
    assert later[0] == "tokenizing  28%  about 29 s left" and later[-1].startswith("tokenizing  82%  about 7 s")


def test_short_work_is_one_line_and_work_of_unknown_size_has_no_estimate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("hfbsz.report.console.time.monotonic", lambda: now[0])
    out = io.StringIO()
    console = Console(out)
    console.work("reading", 0, 0)
    console.work("tokenizing", 1, 2)
    assert out.getvalue().splitlines() == ["reading …", "tokenizing …"]
    now[0] += 30
    console.work("tokenizing", 0, 0)
    assert out.getvalue().splitlines()[-1] == "tokenizing …"


def test_a_state_takes_the_place_of_the_estimate(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("hfbsz.report.console.time.monotonic", lambda: now[0])
    out = io.StringIO()
    console = Console(out)
    console.work("comparing", 0, 4, "0 of 4 runs")
    now[0] += 30
    console.work("comparing", 2, 4, "2 of 4 runs, 3 min left")
    assert out.getvalue().splitlines()[-1] == "comparing  50%  2 of 4 runs, 3 min left"
