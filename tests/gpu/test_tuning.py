"""Tuning by trial is explicit, keeps the fastest, and changes nothing else."""

from __future__ import annotations

import pytest
import torch

from fastmtl.backends.triton import chips, configs, sums, tuning
from tests.gpu.launches import Launch, intercepted


@pytest.fixture(autouse=True)
def forgotten():
    yield
    tuning.forget()


def programs_of(call) -> int:
    launches: list[Launch] = []
    with intercepted(launches.append):
        call()
    (launch,) = launches
    return launch.grid[0]


def test_the_fastest_neighbour_is_kept_for_these_sizes_alone():
    grads = [torch.zeros(4, 100_000) for _ in range(3)]
    with chips.assume(chips.Chip("a small one", 3)):
        call = lambda: sums.sum_norms(grads)  # noqa: E731
        before = programs_of(call)
        tried: list[int] = []

        def milliseconds(call) -> float:
            tried.append(programs_of(call))
            return 1 / tried[-1]  # more programs are faster

        with intercepted(lambda launch: None):
            kept = tuning.autotune(call, milliseconds)
        assert tried == [before, before // 2, 2 * before]
        assert programs_of(call) == 2 * before
        ((key, config),) = kept.items()
        assert key[0] == "by_blocks" and config.programs.count == 2 * before
        assert programs_of(lambda: sums.sum_norms([grad[:3] for grad in grads])) == before
        tuning.forget()
        assert programs_of(call) == before


@pytest.mark.parametrize(
    "arguments", [(3, 64, 2048, 4, 80, 4), (3, 4096, 512, 8, 80, 2), (3, 8, 100, 1, 80, 4), (1, 1, 0, 4, 80, 4)]
)
def test_neighbours_do_the_same_work(arguments):
    config = configs.by_samples(chips.H100, *arguments)
    for other in config.neighbours():
        assert (other.rows, other.blocks) == (config.rows, config.blocks)
        assert (
            other.programs.count == other.blocks * other.splits
            if other.splits > 1
            else other.programs.count <= max(1, other.blocks)
        )
