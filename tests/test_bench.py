"""The start-up times that design promises: importing costs nothing, a plan and --help come within a second."""


def test_startup(hfbsz):
    ended = hfbsz("bench.py", "startup", "repeats=3", process=True)
    assert ended.code == 0, ended.out
