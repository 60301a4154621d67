"""Norm layers and embeddings on the Triton backend, executed without a GPU: what the shared table of cases leaves out.

Segments that cross many chunks, samples shared out among programs, every order of dimensions in memory, and how often
gradients are read.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fastmtl import testing
from fastmtl.backends import triton as backend
from fastmtl.backends.triton import chips
from fastmtl.testing.case import Case, randn
from tests.gpu.executing import SMALL, executed_by_ttsem
from tests.gpu.ptx import executed_as_ptx

pytestmark = pytest.mark.filterwarnings("ignore")
CPU = torch.device("cpu")
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def _sliced(tensor: Tensor) -> Tensor:
    wide = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 3, dtype=tensor.dtype)
    wide[..., 1:-2] = tensor
    return wide[..., 1:-2]


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last)


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _by_turns() -> Callable[[Tensor], Tensor]:
    """Every other tensor with channels last."""
    forms = itertools.cycle((_same, _channels_last))
    return lambda tensor: next(forms)(tensor)


def _embedding(
    name: str,
    indices: Callable[[torch.Generator], Tensor],
    columns: int,
    dtype: torch.dtype = F32,
    tasks: int = 3,
    padding: int | None = None,
    per_sample: bool = True,
    laid_out: Callable[[Tensor], Tensor] = _same,
    missing: Sequence[int] = (),
) -> Case:
    def make(generator: torch.Generator) -> list[object]:
        read = indices(generator)
        shape = (*read.shape, columns)
        grads = [None if k in missing else laid_out(randn(generator, shape, dtype)) for k in range(tasks)]
        return [read, grads, padding, per_sample, "form"]

    return Case("embedding_moments", f"T{tasks}-{name}", dtype, make)


def _ids(vocabulary: int, *shape: int, dtype: torch.dtype = torch.int64) -> Callable[[torch.Generator], Tensor]:
    return lambda generator: torch.randint(vocabulary, shape, generator=generator, dtype=dtype)


def _repeated(generator: torch.Generator) -> Tensor:
    """One index in most places of every sample: its segments cross many chunks."""
    indices = torch.randint(50, (4, 40), generator=generator)
    indices[:, 5:33] = 7
    return indices


EMBEDDINGS = [
    _embedding("large-vocabulary", _ids(1000, 4, 40), 64, BF16),
    _embedding("repeated", _repeated, 64, BF16),
    _embedding("repeated-narrow", _repeated, 12),
    _embedding("repeated-padding", _repeated, 40, BF16, padding=7),
    _embedding("repeated-no-samples", _repeated, 16, per_sample=False),
    _embedding("one-index", _ids(1, 3, 60), 8),
    _embedding("one-index-many-chunks", _ids(1, 2, 640), 8, tasks=1),
    _embedding("padding-alone", _ids(1, 2, 20), 8, padding=0),
    _embedding("one-index-a-sample", _ids(9, 70), 24),
    _embedding("several-blocks", _ids(20, 2, 40), 300, BF16, tasks=2),
    _embedding("single-columns", _ids(11, 5, 30), 3, tasks=4),
    _embedding("transposed", _ids(11, 4, 20), 16, BF16, laid_out=_transposed),
    _embedding("sliced", _ids(11, 4, 20), 16, BF16, laid_out=_sliced),
    _embedding("missing", _ids(11, 3, 40), 32, F16, tasks=5, missing=(0, 3)),
    _embedding("few", _ids(11, 3, 20), 16, BF16, tasks=8),
    _embedding("int32", _ids(11, 3, 40, dtype=torch.int32), 32),
    _embedding("one", _ids(11, 3, 40), 16, BF16, tasks=1),
]


def _norm(
    name: str,
    shape: Sequence[int],
    dims: Sequence[int],
    dtype: torch.dtype = F32,
    tasks: int = 3,
    bias: bool = True,
    per_sample: bool = True,
    laid_out: Callable[[Tensor], Tensor] = _same,
    normalized: torch.dtype | None = None,
    missing: Sequence[int] = (),
) -> Case:
    def make(generator: torch.Generator) -> list[object]:
        grads = [None if k in missing else laid_out(randn(generator, shape, dtype)) for k in range(tasks)]
        return [laid_out(randn(generator, shape, normalized or dtype)), grads, list(dims), bias, per_sample]

    return Case("norm_moments", f"T{tasks}-{name}", dtype, make)


NORMS = [
    _norm("layer-norm", (5, 9, 96), [2], BF16),
    _norm("layer-norm-no-samples", (5, 9, 96), [2], per_sample=False),
    _norm("single-positions", (70, 64), [1], BF16),
    _norm("many-samples", (300, 8), [1]),
    _norm("several-blocks", (3, 3000), [1], tasks=2),
    _norm("group-norm", (3, 5, 8, 8), [1], BF16),
    _norm("group-norm-no-samples", (3, 5, 8, 8), [1], per_sample=False),
    _norm("odd-images", (3, 5, 7, 7), [1], BF16),
    _norm("long", (2, 3, 1000), [1]),
    _norm("channels-last", (3, 16, 7, 7), [1], BF16, laid_out=_channels_last),
    _norm("mixed", (3, 6, 7, 5), [1], tasks=4, laid_out=_by_turns()),
    _norm("transposed", (6, 5, 16), [2], BF16, laid_out=_transposed),
    _norm("sliced", (4, 3, 17), [2], laid_out=_sliced),
    _norm("last-two-apart", (4, 6, 5, 8), [1, 3]),
    _norm("many-dimensions", (2, 3, 2, 3, 2, 3, 2, 3, 2, 2, 2), [1, 3, 5, 7, 9]),
    _norm("wide-normalized", (4, 6, 32), [2], BF16, normalized=F32),
    _norm("missing", (5, 9, 96), [2], BF16, tasks=4, missing=(1,)),
    _norm("few", (3, 5, 64), [2], BF16, tasks=8),
    _norm("few-channels", (3, 4, 8, 8), [1], tasks=8),
    _norm("one", (4, 6, 10), [1], tasks=1, bias=False),
]

NO_KERNELS = [
    _embedding("many-tasks", _ids(5, 3, 8), 6, tasks=9),
    _embedding("empty-batch", _ids(5, 0, 4), 7),
    _embedding("no-columns", _ids(5, 2, 4), 0),
    _norm("many-tasks", (3, 3, 4), [2], tasks=9),
    _norm("empty-batch", (0, 3, 4), [2]),
    _norm("empty-batch-no-samples", (0, 3, 4), [2], per_sample=False),
]


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setitem(testing.BACKENDS, "triton", backend)


def _check(case: Case) -> None:
    outcome = testing.check(case, "triton", CPU)
    assert outcome.passed, f"error {outcome.error} of the tolerance"


@pytest.mark.parametrize("case", EMBEDDINGS + NORMS + NO_KERNELS, ids=str)
def test_from_ttir(case):
    with chips.assume(SMALL), executed_by_ttsem():
        _check(case)


@pytest.mark.parametrize("case", EMBEDDINGS[::2] + NORMS[::2], ids=str)
def test_from_ptx(case):
    with chips.assume(SMALL), executed_as_ptx((0, 1)):
        _check(case)


def _bytes_read(case: Case, kernel: str) -> int:
    """By all launches of a kernel."""
    with chips.assume(SMALL), executed_as_ptx((0,)) as run:
        getattr(backend, case.op)(*case.arguments(CPU))
    pairs = zip(run.launches, run.counts, strict=True)
    return sum(counts["gld_bytes"] for launch, counts in pairs if launch.name == kernel)


def test_norms_read_what_they_are_given_once():
    """Beside it only partial results, of which one program of each group reads all."""
    held = 3 * 3 * 3000 * 4
    read = _bytes_read(_norm("several-blocks", (3, 3000), [1], tasks=2), "norm_moments_few")
    assert held <= read < 1.01 * held


def test_embeddings_read_gradients_once():
    """What is read without one of the gradients, indices and partial results beside the others, is less by just that one."""
    case = functools.partial(_embedding, "several-blocks", _ids(20, 2, 40), 300, BF16)
    whole, without = (_bytes_read(case(missing=missing), "embedding_chunks") for missing in ((), (1,)))
    assert whole - without == 2 * 40 * 300 * 2
