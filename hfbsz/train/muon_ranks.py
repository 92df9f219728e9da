"""Shares the work of Muon over the ranks of a run: each rank orthogonalizes some of the matrices for all.

Under DDP every rank has all matrices; the results are gathered. Under FSDP2 every rank has some rows of each matrix, so
the rows of a matrix are sent to the rank that orthogonalizes it, and those of the result are sent back.
"""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist

Function = Callable[[torch.Tensor], torch.Tensor]  # of matrices [count, rows, columns], with a result of that shape


def on_ranks(matrices: torch.Tensor, function: Function) -> torch.Tensor:
    """`function` of matrices [count, rows, columns] that every rank has, each computed on one rank; all ranks call it.
    The result is the same on every rank."""
    size, rank = _ranks()
    if size == 1:
        return function(matrices)
    share = math.ceil(len(matrices) / size)
    mine = matrices[rank * share : (rank + 1) * share]
    results = function(mine) if len(mine) else mine
    kind = results.dtype if len(mine) else function(matrices[:0]).dtype
    padded = torch.zeros(share, *matrices.shape[1:], dtype=kind, device=matrices.device)
    padded[: len(mine)] = results
    gathered = torch.empty(share * size, *matrices.shape[1:], dtype=kind, device=matrices.device)
    dist.all_gather_into_tensor(gathered, padded)
    return gathered[: len(matrices)]


def on_ranks_by_rows(parts: torch.Tensor, rows: int, function: Function) -> torch.Tensor:
    """`function` of matrices of which this rank has the rows `parts` [count, rows of this rank, columns]; all ranks
    call it. `rows`: of a whole matrix; rank r has the r-th part of ⌈rows ÷ ranks⌉ rows, as DTensor shards dimension 0.

    Returns this rank's rows of the results.
    """
    size, _ = _ranks()
    count, mine, columns = parts.shape
    height, share = math.ceil(rows / size), math.ceil(count / size)
    sent = parts.new_zeros(size * share, height, columns)  # matrices in the order of the ranks that compute them
    sent[:count, :mine] = parts
    received = torch.empty_like(sent)  # rows of this rank's matrices, by the rank that has them
    dist.all_to_all_single(received, sent)
    whole = received.view(size, share, height, columns).transpose(0, 1).reshape(share, size * height, columns)
    results = torch.zeros_like(whole)
    results[:, :rows] = function(whole[:, :rows])
    back = results.view(share, size, height, columns).transpose(0, 1).reshape(size * share, height, columns)
    dist.all_to_all_single(received, back.contiguous())
    return received[:count, :mine]


def _ranks() -> tuple[int, int]:
    """The number of ranks, and the number of this one."""
    return (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
