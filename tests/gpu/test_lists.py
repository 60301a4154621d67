"""Launches over lists of columns, executed as PTX: bytes, many columns a launch, aliasing, what is missing, variants."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from fastmtl.backends import reference
from fastmtl.backends.triton import chips
from tests.gpu.launches import SM80, Launch, intercepted
from tests.gpu.ptx import Run, executed_as_ptx

pytest.importorskip("triton")
from fastmtl.backends.triton import list_configs, lists

SMALL = chips.Chip("a small one", 3)
Grads = list[Tensor | None]


@pytest.fixture(autouse=True)
def small() -> Iterator[None]:
    with chips.assume(SMALL):
        yield


def made(tasks: int, lengths: Sequence[int], dtype: torch.dtype = torch.float32) -> Grads:
    return [torch.randn(length).to(dtype) for _ in range(tasks) for length in lengths]


def partial_bytes(run: Run, width: int) -> int:
    """What ends a launch: a row and a ticket of each program, and of each group of them."""
    rows = 0
    for launch in run.launches:
        programs, group = launch.bound["programs"], launch.bound["group"]
        rows += programs + -(-programs // group)
    return 4 * rows * (width + 1)


@pytest.mark.parametrize(
    ("tasks", "dtype", "width"),
    [
        (3, torch.float32, 8),
        (3, torch.bfloat16, 8),
        (10, torch.bfloat16, 64),
        (13, torch.bfloat16, 256),
        (40, torch.bfloat16, 4096),
    ],
)
def test_gram_reads_each_gradient_once(tasks: int, dtype: torch.dtype, width: int) -> None:
    grads = made(tasks, [2048, 64, 8 * 333], dtype)
    with executed_as_ptx(seeds=(0,)) as run:
        lists.gram(grads, tasks)
    assert len(run.launches) == (1 if tasks < 40 else 2)
    read = sum(grad.nbytes for grad in grads if grad is not None)
    # Launches after the first add to the lower half of what is there.
    before = (len(run.launches) - 1) * tasks * (tasks + 1) // 2 * 4
    assert run.total("gld_bytes") == read + partial_bytes(run, width) + before
    assert run.total("lld_bytes") == run.total("lst_bytes") == 0


@pytest.mark.parametrize(("tasks", "width"), [(3, 4), (8, 8), (20, 32)])
def test_squared_norms_read_each_gradient_once(tasks: int, width: int) -> None:
    grads = made(tasks, [2048, 64])
    with executed_as_ptx(seeds=(0,)) as run:
        lists.squared_norms(grads, tasks)
    assert len(run.launches) == 1
    read = sum(grad.nbytes for grad in grads if grad is not None)
    assert run.total("gld_bytes") == read + partial_bytes(run, width)


@pytest.mark.parametrize("tasks", [3, 20])
def test_weighted_sums_read_each_gradient_and_write_the_sum_once(tasks: int) -> None:
    grads, weights = made(tasks, [2048, 64, 4096], torch.bfloat16), torch.rand(tasks)
    with executed_as_ptx(seeds=(0,)) as run:
        out = lists.weighted_sum(grads, tasks, weights)
    (launch,) = run.launches
    threads = 128
    # Every thread reads the weights (from the cache): once a column, or once a block where tasks are read in chunks.
    blocks = launch.bound["blocks"]
    met = sum(-(-total.numel() // (threads * 8)) for total in out)
    assert blocks == met
    weighed = run.total("gld_bytes") - sum(grad.nbytes for grad in grads if grad is not None)
    if tasks == 20:
        assert weighed == blocks * threads * 4 * tasks
    else:
        assert len(out) * threads * 4 * tasks <= weighed <= (len(out) + launch.grid[0]) * threads * 4 * tasks
    assert run.total("gst_bytes") == sum(total.nbytes for total in out)


@pytest.mark.parametrize("tasks", [3, 12])
def test_many_columns_of_all_kinds_in_few_launches(tasks: int) -> None:
    dtype_of = {0: torch.float32, 1: torch.bfloat16}
    columns: list[Grads] = []
    for n in range(45):
        column: Grads = [torch.randn(4, 6, 10 + n % 3).to(dtype_of[n % 7 == 1]) for _ in range(tasks)]
        if n % 20 == 5:
            column[1] = torch.randn(6, 4, 10 + n % 3).to(dtype_of[n % 7 == 1]).transpose(0, 1)
        if n % 4 == 3:
            column[n % tasks] = None
        columns.append(column)
    columns[7] = [None] * tasks
    columns[9] = [torch.randn(0) for _ in range(tasks)]
    grads = [column[k] for k in range(tasks) for column in columns]
    wide = [None if grad is None else grad.double() for grad in grads]
    with executed_as_ptx(seeds=(0, 3)) as run:
        gram, norms = lists.gram(grads, tasks), lists.squared_norms(grads, tasks)
    assert len(run.launches) <= 2 * (4 + 3 + 45 // list_configs.columns_of_launch(tasks))
    torch.testing.assert_close(gram.double(), reference.gram(wide, tasks), rtol=1e-5, atol=1e-2)
    torch.testing.assert_close(norms.double(), reference.squared_norms(wide, tasks), rtol=1e-5, atol=0)
    assert torch.equal(gram, gram.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_programs_share_the_products_of_many_tasks(dtype: torch.dtype) -> None:
    grads = made(40, [6400], dtype)
    with executed_as_ptx() as run:
        gram = lists.gram(grads, 40)
    assert run.launches[0].grid[0] >= 3
    exact = reference.gram([None if grad is None else grad.double() for grad in grads], 40)
    torch.testing.assert_close(gram.double(), exact, rtol=1e-5, atol=2e-3)
    assert torch.equal(gram, gram.T)


def forms() -> dict[str, list[Tensor]]:
    shape = (2, 3, 2, 3, 2, 4)
    deep = [torch.randn(shape).permute(order) for order in ((5, 3, 1, 0, 2, 4), (4, 0, 2, 5, 3, 1))]
    deep = [deep[0], deep[1].reshape(deep[0].shape), torch.randn(deep[0].shape)]
    sliced = [torch.randn(6, 11)[:, 1:9] for _ in range(3)]
    return {
        "flat": [torch.randn(700) for _ in range(3)],
        "sliced": sliced,
        "transposed": [torch.randn(40, 24).T, torch.randn(24, 40), torch.randn(24, 40)],
        "more dimensions than are followed": deep,
        "sliced, more dimensions": [torch.randn(3, 3, 3, 3, 3, 5)[:2, :2, :2, :2, :2, :4] for _ in range(3)],
    }


@pytest.mark.parametrize("form", list(forms()))
@pytest.mark.parametrize("target", [0, 1, 2])
def test_the_sum_may_go_to_one_of_the_gradients(form: str, target: int) -> None:
    grads, weights = forms()[form], torch.tensor([1.5, -0.25, 3.0])
    expected = reference.weighted_sum([grad.clone() for grad in grads], 3, weights)[0]
    with executed_as_ptx(seeds=(0, 1)):
        lists.weighted_sum_out(grads, 3, weights, [grads[target]])
    assert torch.equal(grads[target], expected)


@pytest.mark.parametrize("tasks", [4, 34])
def test_missing_gradients_count_nothing_whatever_their_weight(tasks: int) -> None:
    weights = torch.rand(tasks)
    weights[tasks - 2] = float("nan")
    grads = made(tasks, [50, 64])
    grads[2 * (tasks - 2)] = grads[2 * (tasks - 2) + 1] = None
    out = [torch.full((50,), float("nan")), torch.full((64,), float("nan"))]
    with executed_as_ptx(seeds=(0,)):
        lists.weighted_sum_out(grads, tasks, weights, out)
    for total, expected in zip(out, reference.weighted_sum(grads, tasks, weights), strict=True):
        assert torch.equal(total, expected)


def test_a_column_without_gradients_has_a_sum_of_zeros() -> None:
    out = [torch.full((50,), float("nan")), torch.full((64,), float("nan"))]
    grads: Grads = [torch.randn(50), None, torch.randn(50), None]
    with executed_as_ptx(seeds=(0,)):
        lists.weighted_sum_out(grads, 2, torch.rand(2), out)
    assert torch.equal(out[1], torch.zeros(64))


def test_patterns_of_lengths_alignment_and_missing_tasks_compile_nothing_new() -> None:
    found: list[Launch] = []
    wide = torch.randn(3, 4000)
    with intercepted(found.append):
        for lengths, start in (([15, 33, 1], 0), ([1 << 12, 5, 999], 0), ([7, 8, 9], 1), ([1, 17, 64], 2)):
            grads: Grads = made(3, lengths)
            if start:  # the first column of every task lies badly
                grads[::3] = [own[start : start + lengths[0]] for own in wide]
            grads[4] = None if start else grads[4]
            lists.gram([grad[:-1] if grad is not None and grad.numel() % 4 == 0 else grad for grad in grads], 3)
    keys = {str(launch.specialized(SM80)[1:]) for launch in found}
    assert len(found) == 6
    assert len(keys) == 2  # many columns; one that lies badly


class Shifted(Tensor):
    """A tensor that says its memory starts ``shift`` bytes before it does."""

    shift: int

    def data_ptr(self) -> int:
        return super().data_ptr() - self.shift


def shifted(tensor: Tensor, shift: int) -> Tensor:
    out = tensor.as_subclass(Shifted)
    out.shift = shift
    return out


@pytest.mark.parametrize(("tasks", "block"), [(2, 512), (13, 32)])
def test_positions_beyond_the_31st_bit(tasks: int, block: int) -> None:
    """The end of a column of more than 2^31 positions: its launch, told that 2^31 positions came before those that are here."""
    grads = [torch.randn(3 * block - 4) for _ in range(tasks)]
    found: list[Launch] = []
    with intercepted(found.append):
        result = lists.gram([grad for own in grads for grad in (own[:4], own)], tasks)
    (launch,) = found
    names = [parameter.name for parameter in launch.kernel.params]
    before = (1 << 31) // block
    arguments = dict(zip(names, launch.args, strict=False))
    columns = len(arguments["ends"])
    tensors = tuple(shifted(grad, before * block * 4) for grad in grads)
    arguments |= {
        "tensors": (tensors,) * columns,
        "ends": (2 * -before + 1,) + (2 * 3 + 1,) * (columns - 1),
        "tails": (2 * (block - 4) + 1,) * columns,
        "programs": 1,
        "group": 1,
        "blocks": 3,
    }
    launch = Launch(launch.kernel, (1,), tuple(arguments[name] for name in names[: len(launch.args)]), launch.kwargs)
    with executed_as_ptx(seeds=(0, 1)):
        launch.kernel.run(*launch.args, grid=launch.grid, warmup=False, **launch.kwargs)
    exact = reference.gram([grad.double() for grad in grads], tasks)
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-3)
