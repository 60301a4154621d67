"""The CUDA library's ops: schemas, layouts, errors, and the workspace that calls share."""

from __future__ import annotations

import re

import pytest
import torch

from fastmtl.backends import contract, cuda, reference
from tests.cuda.hosting import library, on_host
from tests.shared import poisoned_memory

LAYOUTS = {
    "contiguous": lambda g: g,
    "channels_last": lambda g: g.contiguous(memory_format=torch.channels_last),
    "transposed": lambda g: g.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
    "batch_innermost": lambda g: g.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "sliced": lambda g: torch.stack([g, g + 1], -1)[..., 0],
    "expanded": lambda g: g[:1, :, :1, :1].expand_as(g),
    "expanded_samples": lambda g: g[:1].expand_as(g),
    "offset": lambda g: torch.cat([g.new_zeros(1), g.flatten()])[1:].view_as(g),
}
OPS = {"sum_norms", "sum_moments", "gram", "squared_norms", "weighted_sum", "cross_gram"} & set(vars(cuda))


def _grads(tasks, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(tasks)]


def _called(backend, op, grads):
    if op in ("gram", "squared_norms"):
        return [getattr(backend, op)(grads, len(grads))]
    if op == "weighted_sum":
        return backend.weighted_sum(grads, len(grads), torch.linspace(-1, 2, len(grads)))
    if op == "cross_gram":
        return [backend.cross_gram(grads, grads[1:])]
    return getattr(backend, op)(grads)


def test_schemas_are_those_of_the_contract():
    library()
    registered = {name for name in contract.SCHEMAS if hasattr(torch.ops.fastmtl_cuda, name)}
    assert registered == {name for name in vars(cuda) if name in contract.SCHEMAS} - {*contract.COMPOSED}
    for name in registered:
        schema = str(getattr(torch.ops.fastmtl_cuda, name).default._schema)
        assert re.sub(r"\s", "", schema) == re.sub(r"\s", "", f"fastmtl_cuda::{name}{contract.SCHEMAS[name]}")


@pytest.mark.parametrize("op", sorted(OPS))
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("first", LAYOUTS)
def test_layouts(first, second, op):
    """Of each pair of layouts: the total lies as the contract says, and numbers agree with float64."""
    dtype = torch.float16 if (sorted(LAYOUTS).index(first) + sorted(LAYOUTS).index(second)) % 2 else torch.float32
    made = _grads(3, (6, 5, 4, 8), dtype)
    grads = [LAYOUTS[first](made[0]), LAYOUTS[second](made[1]), LAYOUTS[first](made[2])]
    with on_host(), poisoned_memory():
        results = _called(cuda, op, grads)
    exact = _called(reference, op, [grad.double() for grad in grads])
    for result, expected in zip(results, exact, strict=True):
        if result.shape == grads[0].shape:
            like = contract.empty_total(grads)
            assert (result.stride(), result.dtype) == (like.stride(), dtype)
        scale = expected.abs().max()
        assert ((result.double() - expected).abs() <= (torch.finfo(result.dtype).eps + 2e-6) * scale).all()


def test_more_dimensions_than_the_index_arithmetic_has_are_copied():
    shape = (2, 3, 2, 3, 2, 3)
    scattered = [torch.randn(*reversed(shape)).permute(5, 4, 3, 2, 1, 0) for _ in range(2)]
    strange = torch.randn(2, 2, 3, 3, 2, 3).permute(1, 3, 0, 2, 4, 5)
    grads = [torch.randn(shape), scattered[0], strange]
    with on_host(), poisoned_memory():
        total, norms = cuda.sum_norms(grads)
    expected, exact = reference.sum_norms(grads)
    assert torch.equal(total, expected)
    assert torch.allclose(norms, exact, rtol=1e-5)


def test_the_workspace_is_left_as_it_was_found():
    """Tickets are zero again after each launch, whatever the number of blocks was."""
    grads = _grads(3, (9, 4000), torch.float32)
    expected = reference.sum_norms(grads)[1]
    for processors in (3, 1, 40, 7, 3):
        with on_host(processors=processors):
            for _ in range(2):
                assert torch.allclose(cuda.sum_norms(grads)[1], expected, rtol=1e-5)


def test_the_order_of_blocks_changes_no_bit():
    grads = _grads(5, (9, 4000), torch.bfloat16)
    results = []
    for order in (0, 1, 2):
        with on_host(order=order):
            results.append(cuda.sum_norms(grads)[1])
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_errors_name_the_argument():
    a, b = torch.ones(2, 3), torch.ones(2, 4)
    with on_host():
        for call, message in [
            (lambda: cuda.sum_norms([a, b]), r"grads\[1\]: expected shape \[2, 3\], got \[2, 4\]"),
            (lambda: cuda.sum_norms([a, a.half()]), r"grads\[1\]: expected dtype Float, got Half"),
            (lambda: cuda.sum_norms([a.long()]), r"grads\[0\]: expected float32, bfloat16"),
            (lambda: cuda.sum_norms([a.double()]), "grads: expected float32, bfloat16 or float16, got float64"),
            (lambda: cuda.sum_norms([a] * 65), "grads: expected at most 64 tensors, got 65"),
            (lambda: cuda.weigh([a], a[0, :1], a[0, :1] > 0), r"losses\[0\]: expected one element, got shape \[2, 3\]"),
        ]:
            with pytest.raises(RuntimeError, match=message):
                call()
