"""Matrices that ranks share are those of one rank, whatever their number and shape."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from hfbsz.train.muon import orthogonalize
from hfbsz.train.muon_ranks import on_ranks, on_ranks_by_rows

RANKS = 3
CASES = [(1, 5, 7), (2, 9, 4), (3, 6, 6), (7, 2, 8), (4, 1, 3)]  # count, rows, columns; with fewer rows than ranks


def matrices(count, rows, columns):
    draw = torch.Generator().manual_seed(count)
    return torch.randn(count, rows, columns, generator=draw, dtype=torch.float64)


def rank_of(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    computed, results = [], {}

    def function(given):
        computed.append(len(given))
        return orthogonalize(given)

    for case in CASES:
        whole = matrices(*case)
        results["whole", case] = on_ranks(whole, function)
        height = -(-case[1] // RANKS)
        part = whole[:, rank * height : (rank + 1) * height]
        results["rows", case] = on_ranks_by_rows(part, case[1], function)
        assert results["rows", case].shape == part.shape
    torch.save((results, sum(computed)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_three_ranks_have_the_results_of_one(tmp_path):
    mp.start_processes(rank_of, (tmp_path,), nprocs=RANKS, start_method="spawn")
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    for case in CASES:
        expected = orthogonalize(matrices(*case))
        for results, _ in ranks:
            assert torch.equal(results["whole", case], ranks[0][0]["whole", case])
            torch.testing.assert_close(results["whole", case], expected, rtol=1e-12, atol=1e-12)
        rows = torch.cat([results["rows", case] for results, _ in ranks], dim=1)
        torch.testing.assert_close(rows, expected, rtol=1e-12, atol=1e-12)
    whole = sum(-(-count // RANKS) for count, _, _ in CASES)
    assert max(computed for _, computed in ranks) <= 2 * whole  # a third of the work, rounded up, in both forms


def test_one_rank_needs_no_group():
    given = matrices(2, 4, 4)
    assert torch.equal(on_ranks(given, orthogonalize), orthogonalize(given))


@pytest.mark.parametrize("wide", [True, False])
def test_no_matrix_is_no_work(wide):
    assert on_ranks(torch.zeros(0, 4, 8 if wide else 2), orthogonalize).shape == (0, 4, 8 if wide else 2)
