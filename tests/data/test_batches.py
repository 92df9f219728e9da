"""How a step's ragged rows are divided among ranks and micro-batches, and how much of that is padding."""

import ast
import json
import sysconfig
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from hfbsz.data.batches import Batch, Windows, micro_batch_starts, split_by_length
from hfbsz.data.rows import prepare
from hfbsz.plan.resolve import resolve
from hfbsz.recipe.load import load
from hfbsz.train.tasks.language_modeling import LanguageModeling


def lengths_of(count, seed=0):
    return np.random.default_rng(seed).integers(2, 200, count).astype(np.int32)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_ranks_get_equally_many_rows_of_like_lengths(ranks):
    lengths = lengths_of(64)
    by_rank = split_by_length(lengths, ranks)
    assert by_rank.shape == (ranks, 64 // ranks) and sorted(by_rank.ravel().tolist()) == list(range(64))
    assert (np.diff(lengths[by_rank]) <= 0).all()
    totals = lengths[by_rank].sum(axis=1)
    assert totals.max() - totals.min() <= lengths.max()


@pytest.mark.parametrize("max_tokens", [1, 50, 400, 1000, 10**6])
def test_a_micro_batch_is_as_many_rows_as_fill_it_or_one(max_tokens):
    lengths = np.sort(lengths_of(64))[::-1]
    starts = micro_batch_starts(lengths, max_tokens)
    assert starts[0] == 0 and starts == sorted(set(starts))
    for start, stop in zip(starts, [*starts[1:], 64], strict=True):
        assert (stop - start) * lengths[start] <= max_tokens or stop - start == 1
        assert stop == 64 or (stop - start + 1) * lengths[start] > max_tokens  # no room for one more
    assert len(starts) == {1: 64, 10**6: 1}.get(max_tokens, len(starts))
    for count in (len(starts), len(starts) + 1, 64):
        if count <= 64:
            more = micro_batch_starts(lengths, max_tokens, count)
            assert len(more) == count and set(starts) <= set(more) and more == sorted(set(more))


class RaggedData:
    """The ragged rows of a file, with plans and windows over them."""

    def __init__(self, path, *words):
        self.words = ["recipe=tests/tiny.yaml", f"data.files={path}", *words]
        self.data = prepare(load(self.words).recipe.data, {}, lambda *_: None)
        self.collate = LanguageModeling(0).collate

    def windows(self, world, *words, equal_counts=False):
        plan = resolve(load([*self.words, *words]).recipe, world, self.data.facts)
        ranks = [Windows(self.data.train, plan, self.collate, rank, world, equal_counts) for rank in range(world)]
        return [[windows.window(planned) for windows in ranks] for planned in plan.walk()]


@pytest.fixture(autouse=True)
def _here(monkeypatch, cache):
    from conftest import ROOT

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HFBSZ_CACHE", str(cache))


def rows_of(batches):
    """The rows of micro-batches without padding, sorted."""
    return sorted(
        tuple(inputs[labels != -100].tolist())
        for batch in batches
        for inputs, labels in zip(batch.inputs["input_ids"], batch.labels, strict=True)
    )


def padding(steps):
    batches = [batch for ranks in steps for rank in ranks for batch in rank]
    return 1 - sum(batch.tokens for batch in batches) / sum(batch.positions for batch in batches)


def test_lengths_are_those_of_the_rows(ragged):
    rows = RaggedData(ragged).data.train
    assert rows.lengths.tolist() == [len(rows[i]) for i in range(len(rows))]


@pytest.mark.parametrize("by_length", ["false", "true"])
def test_a_step_takes_the_same_rows_on_any_number_of_ranks_and_in_any_split(ragged, by_length):
    corpus, words = RaggedData(ragged), [f"batch.by_length={by_length}", "batch.size=16seq", "duration=40steps"]
    seen = []
    for world, split in product((1, 2, 4), ("null", "40", "150", "100000")):
        steps = corpus.windows(world, *words, f"batch.micro_tokens={split}", equal_counts=world == 4)
        for ranks in steps:
            counts = [sum(len(batch.labels) for batch in rank) for rank in ranks]
            assert counts == [16 // world] * world
            most = [len(batch.labels) * (batch.labels.shape[1] + 1) for rank in ranks for batch in rank]
            alone = [len(batch.labels) == 1 for rank in ranks for batch in rank]
            assert split == "null" or all(m <= int(split) or one for m, one in zip(most, alone, strict=True))
        seen.append([rows_of([batch for rank in ranks for batch in rank]) for ranks in steps])
    assert all(steps == seen[0] for steps in seen[1:]) and len(seen[0]) == 40


def test_a_split_by_rows_takes_them_as_the_order_gives_them(ragged):
    """Without micro_tokens: micro-batch by micro-batch, rank by rank."""
    corpus = RaggedData(ragged)
    plan = resolve(load([*corpus.words, "batch.micro_max=2"]).recipe, 2, corpus.data.facts)
    first, second = (Windows(corpus.data.train, plan, corpus.collate, rank, 2) for rank in (0, 1))
    planned = plan.step(8)
    numbers = [int(number) for number in first.row_numbers(8, 16)]
    taken = [batch for pair in zip(first.window(planned), second.window(planned), strict=True) for batch in pair]
    for place, batch in enumerate(taken):
        expected = corpus.collate([corpus.data.train[number] for number in numbers[2 * place : 2 * place + 2]])
        assert torch.equal(batch.inputs["input_ids"], expected.inputs["input_ids"])


def test_equal_counts_are_equal_and_no_more_than_needed(ragged):
    """FSDP2: as many passes as the rank that needs the most; without, at least one step has unequal ones."""
    words = ["batch.size=32seq", "batch.micro_tokens=100", "duration=30steps"]
    corpus = RaggedData(ragged)
    free, equal = corpus.windows(2, *words), corpus.windows(2, *words, equal_counts=True)
    counts = [[len(rank) for rank in ranks] for ranks in free]
    assert any(one != other for one, other in counts)
    assert [[len(rank) for rank in ranks] for ranks in equal] == [[max(pair)] * 2 for pair in counts]


def test_positions_are_rows_times_the_longest():
    batch = Batch({"input_ids": torch.zeros(3, 7, dtype=torch.int64)}, torch.zeros(3), 3, 15)
    assert batch.positions == 21


@pytest.fixture(scope="module")
def functions(tmp_path_factory):
    """Every function of five modules of the standard library, one document each: lengths as they come."""
    lines = []
    for name in ("argparse", "ast", "typing", "dataclasses", "pathlib"):
        source = (Path(sysconfig.get_path("stdlib")) / f"{name}.py").read_text()
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
        lines += [json.dumps({"text": ast.get_source_segment(source, node)}) for node in nodes]
    path = tmp_path_factory.mktemp("functions") / "functions.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_little_is_padded(functions, capsys):
    corpus = RaggedData(
        functions, "data.sequence_length=256", "data.vocab_size=1024", "batch.size=16seq", "duration=1epochs"
    )
    filled, sorted_ = "batch.micro_tokens=2048", "batch.by_length=true"
    ways = {"as they come": [], "micro_tokens": [filled], "by_length": [sorted_], "both": [filled, sorted_]}
    shares = {name: padding(corpus.windows(1, *words)) for name, words in ways.items()}
    with capsys.disabled():
        rows = corpus.data.train.lengths
        print(f"\npadding of {len(rows)} rows of {rows.mean():.0f} ± {rows.std():.0f} tokens, batch 16:", end=" ")
        print(", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
    assert shares["as they come"] > 0.4 and shares["micro_tokens"] < 0.65 * shares["as they come"]
    assert shares["by_length"] < 0.1 and shares["both"] < 0.1
