"""What the compilers make of every kernel is held to stated budgets; `python -m tests.gpu.report` prints it all.

Launches are recorded with fake CUDA tensors, which also shows that nothing is read on the host, and compiled for the chip that
their configuration was chosen for.
"""

from __future__ import annotations

import fnmatch
import functools

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

from fastmtl.backends.triton import chips
from tests.gpu.machines import Machine
from tests.gpu.recording import recorded
from tests.gpu.report import MACHINES, Line, Subject, lines_of, subjects
from tests.shared import ALL_CASES

# By kernel and tasks: registers of a thread, on NVIDIA for float32 and for 16-bit gradients, then the same on AMD.
BUDGETS = {
    ("sum_norms_few", 3): (48, 48, 48, 56),
    ("sum_norms_few", 8): (80, 96, 64, 96),
    ("sum_norms_few", 10): (112, 112, 64, 112),
    ("sum_moments_few", 3): (80, 96, 80, 112),
    ("sum_moments_few", 8): (224, 252, 192, 288),
    ("sum_moments_few", 10): (255, 255, 208, 208),
    ("gram_few", 10): (168, 168, 128, 128),  # an embedding's in 16 bits is of float32 numbers
    ("squared_norms", 10): (112, 112, 64, 72),
    ("squared_norms", 40): (208, 208, 136, 136),
    ("sum_moments_split", 3): (112, 112, 80, 112),
    ("sum_moments_split", 10): (240, 255, 224, 224),
    ("sum_norms_few with update", 3): (120, 120, 88, 88),
    ("sum_moments_few with update", 3): (128, 128, 112, 112),
    ("gradnorm_update", 3): (80, 80, 56, 56),
    ("gradnorm_update", 64): (104, 104, 56, 56),
    ("gnr_update", 3): (120, 120, 112, 112),  # the solver is in registers; one warp
    ("gnr_update", 64): (248, 248, 152, 152),  # one program
}
# Of a kernel that has no line yet: what a thread can have.
LIMITS = (255, 255, 512, 512)
# What configurations expected of the registers may be this much too low; too high costs programs that the memory could do with.
MARGIN = 1.5

# What does not hold yet, by call and target: bytes of local memory of a thread that are known. To be empty.
SPILLS = {
    "sum_norms-features-T64-*-gfx942": 132,  # 64 addresses are more than the scalar registers
    "sum_moments-features-T40-float32-sm_120": 8,
    "sum_moments_update-T40-float32-sm_80": 8,
}
# More programs than the processor holds at once.
MORE_THAN_RESIDENT = (
    "linear_moments-form-*",  # these take no turns: a tile a program
    "conv_moments-form-*",
    "weighted_sum-T40-*-gfx942",  # to be mended: AMD's compiler takes more registers than it would need
    "sum_norms-features-T40-bfloat16-gfx942",
    "sum_moments_update-T16-bfloat16-sm_120",  # to be mended: the chip's shared memory is not known to the heuristic
)


def name_of(subject: Subject, machine: Machine) -> str:
    return f"{subject}-{machine.target}"


def by_turns() -> list[tuple[Subject, Machine]]:
    """Each call for every other machine, in its other dtype for the others, in turn; all with FASTMTL_ALL_CASES=1."""
    numbers: dict[tuple[str, int], int] = {}
    taken = []
    for subject in subjects():
        number = numbers.setdefault((subject.name, subject.tasks), len(numbers)) + (subject.dtype != torch.float32)
        taken += [(subject, machine) for n, machine in enumerate(MACHINES) if ALL_CASES or (n + number) % 2 == 0]
    return taken


BOTH = pytest.mark.parametrize(
    ("subject", "machine"),
    [pytest.param(subject, machine, id=name_of(subject, machine)) for subject, machine in by_turns()],
)


_SUBJECTS = {str(subject): subject for subject in subjects()}


@functools.cache
def _lines(name: str, machine: Machine) -> list[Line]:
    return lines_of(_SUBJECTS[name], machine)


def lines(subject: Subject, machine: Machine) -> list[Line]:
    return _lines(str(subject), machine)


@BOTH
def test_no_spills_and_no_local_memory(subject, machine):
    allowed = [size for known, size in SPILLS.items() if fnmatch.fnmatch(name_of(subject, machine), known)]
    assert max(line.spills for line in lines(subject, machine)) <= max(allowed, default=0)


@BOTH
def test_registers_are_within_budget(subject, machine):
    for line in lines(subject, machine):
        column = (2 if machine.target.startswith("gfx") else 0) + (subject.dtype != torch.float32)
        kernel = line.launch.name + (" with update" if line.launch.bound.get("STEP") else "")
        assert line.registers <= BUDGETS.get((kernel, subject.tasks), LIMITS)[column]


@BOTH
def test_all_programs_are_resident_at_once(subject, machine):
    """Where programs take blocks in turns: one that starts when another ends finds its share of blocks still to do."""
    if any(fnmatch.fnmatch(name_of(subject, machine), known) for known in MORE_THAN_RESIDENT):
        return
    for line in lines(subject, machine):
        if line.expected_registers is not None:
            limit = line.launch.kwargs.get("maxnreg", 0)  # which compilers may use up
            assert line.registers <= max(limit, MARGIN * line.expected_registers)
            assert line.programs <= machine.chip.processors * line.resident


@BOTH
def test_accesses_of_16_bytes(subject, machine):
    assert sum(line.wide_loads for line in lines(subject, machine)) >= subject.wide_loads
    assert sum(line.wide_stores for line in lines(subject, machine)) >= subject.wide_stores


@BOTH
def test_tickets_are_in_order(subject, machine):
    """What executors cannot see: where memory is sequentially consistent, a missing fence changes no value."""
    assert all(line.tickets for line in lines(subject, machine))


def test_reading_on_the_host_would_raise():
    with pytest.raises(DataDependentOutputException):
        recorded(lambda: torch.ones(1, device="cuda").item(), chips.A100)
