"""More than 2^31 elements: the real launch, of which the PTX executor runs the few programs that reach past 2^31.

The arguments, the grid and the PTX are those of tensors of this size; of their memory only the windows that these programs may
touch exist, and any other address raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmtl.backends import triton as backend
from fastmtl.backends.triton import chips
from tests.gpu.launches import Launch
from tests.gpu.ptx import emulator
from tests.gpu.recording import recorded

# So many processors that each program has one block: the last programs are at the end of the tensors.
HUGE = chips.Chip("one program a block", 1 << 23)


@dataclass
class Window:
    """Elements first ... first + len(values) - 1 of a tensor."""

    first: int
    values: Tensor

    def bytes(self) -> np.ndarray[Any, Any]:
        return self.values.view(torch.uint8).numpy()


def run_programs(launch: Launch, programs: Sequence[int], windows: dict[int, list[Window]]) -> None:
    """Run some of a launch's programs; ``windows`` of the pointers by their place among the arguments, written back."""
    ptxemu = emulator()
    device = ptxemu.Device()
    placed: list[tuple[int, int, int, Window]] = []
    values: list[Any] = []
    for place, (value, kind) in enumerate(launch.arguments()):
        if not kind.startswith("*"):
            values.append(np.float64(value) if kind == "fp64" else int(value))
            continue
        base = (place + 1) << 40  # farther apart than the tensors are large
        values.append(base)
        for window in windows.get(place, ()):
            data = window.bytes()
            start = base + window.first * window.values.element_size()
            placed.append((start, len(data), device.put(data, f"argument {place}"), window))

    def translated(address: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        out = np.zeros_like(address)
        for start, size, real, _ in placed:
            inside = (address >= np.uint64(start)) & (address < np.uint64(start + size))
            out[inside] = address[inside] - np.uint64(start) + np.uint64(real)
        if (out == 0).any():
            wrong = int(address[out == 0][0])
            raise ptxemu.PTXError(f"argument {(wrong >> 40) - 1}: byte {wrong & ((1 << 40) - 1)} is in no window")
        return out

    class Sparse(ptxemu._Chunk):
        def __init__(self, device: Any, module: Any, kernel: Any, grid: Any, block: Any, _: Any, *rest: Any) -> None:
            super().__init__(device, module, kernel, grid, block, np.asarray(programs), *rest)

        def load(self, space: str, address: Any, *rest: Any) -> Any:
            return super().load(space, translated(address) if space == "global" else address, *rest)

        def store(self, space: str, address: Any, *rest: Any) -> None:
            super().store(space, translated(address) if space == "global" else address, *rest)

    compiled = launch.compiled()
    with mock.patch.object(ptxemu, "_Chunk", Sparse):
        ptxemu.launch(
            device, ptxemu.Module(compiled.asm["ptx"]), compiled.metadata.name, launch.grid,
            32 * compiled.metadata.num_warps, values, dynshared=compiled.metadata.shared, resident=launch.grid[0],
        )  # fmt: skip
    for _, size, real, window in placed:
        window.bytes()[:] = device.mem[real : real + size]


def _launch(call: Callable[[], Any]) -> Launch:
    (launch,) = recorded(call, HUGE)
    return launch


def _places(launch: Launch) -> dict[str, int]:
    """The place of each argument's first value among the flattened arguments."""
    found: dict[str, int] = {}
    for place, (value, _) in enumerate(launch.arguments()):
        for name, bound in launch.bound.items():
            if bound is value or (isinstance(bound, tuple) and any(item is value for item in bound)):
                found.setdefault(name, place)
    return found


def _windows(firsts: Sequence[int], size: int, dtype: torch.dtype, random: bool) -> list[Window]:
    made = [torch.randn(size) if random else torch.full((size,), float("nan")) for _ in firsts]
    return [Window(first, values.to(dtype)) for first, values in zip(firsts, made, strict=True)]


def _partials(launch: Launch, program: int, width: int) -> list[Window]:
    """The rows of partial results of a program, and of its group, of which it may be the only one."""
    group = program // launch.bound["group"]
    return _windows([program * width, (launch.grid[0] + group) * width], width, torch.float32, random=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sum_norms(dtype):
    positions = (1 << 32) + 24  # past 2^32 as well
    launch = _launch(lambda: backend.sum_norms([torch.empty(positions, dtype=dtype, device="cuda") for _ in range(2)]))
    block = launch.kwargs["N"] * launch.kwargs["V"]
    assert launch.grid == (-(-positions // block),)
    places = _places(launch)
    programs = ((1 << 31) // block, launch.grid[0] - 1)
    for program in programs:
        first, size = program * block, min(block, positions - program * block)
        grads = [_windows([first], size, dtype, random=True) for _ in range(2)]
        total = _windows([first], size, dtype, random=False)
        partials = _partials(launch, program, 2)
        tickets = [Window(0, torch.zeros(1 << 16, dtype=torch.int32))]
        run_programs(
            launch,
            [program],
            {
                places["grads"]: grads[0],
                places["grads"] + 1: grads[1],
                places["p_total"]: total,
                places["p_partials"]: partials,
                places["p_tickets"]: tickets,
            },
        )
        values = [grad[0].values.float() for grad in grads]
        torch.testing.assert_close(total[0].values, (values[0] + values[1]).to(dtype), rtol=0, atol=0)
        torch.testing.assert_close(partials[0].values, torch.stack([value.square().sum() for value in values]))


def test_sum_moments():
    """Samples 2^30 apart, four of them: offsets of samples past 2^31, of a tensor whose positions are fewer."""
    batch, positions = 4, (1 << 30) + 4
    launch = _launch(lambda: backend.sum_moments([torch.empty(batch, positions, device="cuda") for _ in range(2)]))
    block = launch.kwargs["N"] * launch.kwargs["V"]
    places = _places(launch)
    program = launch.grid[0] - 1
    first, size = program * block, positions - program * block
    firsts = [sample * positions + first for sample in range(batch)]
    assert firsts[-1] > 1 << 31
    grads = [_windows(firsts, size, torch.float32, random=True) for _ in range(2)]
    total = _windows(firsts, size, torch.float32, random=False)
    width = 2 * launch.kwargs["HALF"]
    partials = _partials(launch, program, width)
    run_programs(
        launch,
        [program],
        {
            places["grads"]: grads[0],
            places["grads"] + 1: grads[1],
            places["p_total"]: total,
            places["p_partials"]: partials,
            places["p_tickets"]: [Window(0, torch.zeros(1 << 16, dtype=torch.int32))],
        },
    )
    stacked = torch.stack([torch.stack([window.values for window in grad]) for grad in grads])  # [2, batch, size]
    torch.testing.assert_close(torch.stack([w.values for w in total]), stacked.sum(0), rtol=0, atol=0)
    per_sample = torch.einsum("kbp,jbp->kj", stacked, stacked)
    second = stacked.sum(1) @ stacked.sum(1).T
    expected = [matrix[pair] for matrix in (per_sample, second) for pair in ((0, 0), (1, 0), (1, 1))]
    halves = partials[0].values.view(-1, 2)[:3].T.reshape(-1)  # `kernels.moments.moments_row`
    torch.testing.assert_close(halves, torch.stack(expected), rtol=1e-5, atol=1e-4)


def test_an_offset_of_32_bits_would_be_noticed():
    """The windows alone exist: what a truncated offset reaches raises."""
    positions = (1 << 32) + 24
    launch = _launch(lambda: backend.sum_norms([torch.empty(positions, device="cuda") for _ in range(2)]))
    places, program = _places(launch), launch.grid[0] - 1
    near = _windows([0], 1 << 10, torch.float32, random=True)  # where 2^32 positions further on would be, wrapped
    with pytest.raises(emulator().PTXError, match="is in no window"):
        run_programs(launch, [program], {places["grads"]: near})


@pytest.mark.parametrize("op", ["sum_norms", "sum_moments"])
def test_offsets_are_of_64_bits(op):
    """Addresses are formed from 64-bit offsets: the TTIR has no pointer moved by a 32-bit tensor of positions."""
    shape = (4, 1 << 20)
    launch = _launch(lambda: getattr(backend, op)([torch.empty(shape, device="cuda") for _ in range(2)]))
    text = launch.compiled().asm["ttir"]
    block = f"{launch.kwargs['N']}x{launch.kwargs['V']}"
    moved = [line for line in text.splitlines() if "tt.addptr" in line and f"tensor<{block}x!tt.ptr" in line]
    assert moved
    assert all(f"tensor<{block}xi64>" in line for line in moved), [line for line in moved if "xi64" not in line]
