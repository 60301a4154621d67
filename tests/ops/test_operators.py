"""What torch asks of an operator: schemas, fake tensors, compile, the meta device, refusal of derivatives."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmtl import ops, testing
from fastmtl.backends.contract import SCHEMAS

CPU = torch.device("cpu")
# One case for each op and layout is enough here; values are checked elsewhere.
CASES = [
    case
    for case in testing.cases()
    if case.dtype in (torch.float32, torch.bfloat16)
    and ("T3" in case.name or "T4" in case.name)
    and "large" not in case.name
]


def operator(case: testing.Case):
    return getattr(torch.ops.fastmtl, case.op).default


def is_finite(case: testing.Case) -> bool:
    flags: list[bool] = []
    testing.map_tensors(lambda tensor: flags.append(bool(tensor.isfinite().all())) or tensor, case.arguments(CPU))
    return all(flags)


# opcheck compares its runs with NaN != NaN.
@pytest.mark.parametrize("case", [case for case in CASES if is_finite(case)], ids=str)
def test_opcheck(case):
    torch.library.opcheck(operator(case), tuple(case.arguments(CPU)))


def test_every_op_is_checked():
    assert {case.op for case in CASES} == set(SCHEMAS)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_fake_tensors_have_the_real_shapes_and_strides(case, device):
    """Fake CUDA tensors need no GPU, and raise where something would be read on the host."""
    real = testing.run(torch.ops.fastmtl, case, case.arguments(CPU))
    with FakeTensorMode() as mode:
        arguments = testing.map_tensors(lambda tensor: mode.from_tensor(tensor), case.arguments(CPU))
        if device == "cuda":
            arguments = testing.map_tensors(
                lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda"), arguments
            )
        fake = testing.run(torch.ops.fastmtl, case, arguments)
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        assert b.device.type == device


@pytest.mark.parametrize("case", [case for case in CASES if "!" not in SCHEMAS[case.op]], ids=str)
def test_meta_device(case):
    real = testing.run(torch.ops.fastmtl, case, case.arguments(CPU))
    meta = testing.run(
        torch.ops.fastmtl,
        case,
        testing.map_tensors(
            lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta"), case.arguments(CPU)
        ),
    )
    for a, b in zip(real, meta, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        assert b.is_meta


def test_statistics_have_no_derivative_and_say_so():
    grads = [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
    with pytest.raises(RuntimeError, match=r"fastmtl\.ops\.gram has no derivative"):
        ops.gram(grads).sum().backward()
