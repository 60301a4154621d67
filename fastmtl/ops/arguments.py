"""Reading the ``grads`` argument of the public ops: three forms in, one task-major list or a clear error out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from fastmtl.backends.contract import DTYPES, MAX_TASKS, columns, present_of, statistics_dtype

Gradients: TypeAlias = Tensor | Sequence[Tensor | None] | Sequence[Sequence[Tensor | None]]


@dataclass(frozen=True)
class TaskLists:
    """T tasks of N tensors each, task after task, and in which form they came."""

    flat: list[Tensor | None]
    tasks: int
    nested: bool

    @property
    def device(self) -> torch.device:
        """The device of every gradient."""
        return present_of(self.flat)[0].device

    @property
    def statistics_dtype(self) -> torch.dtype:
        """The dtype of norms and moments."""
        return statistics_dtype(present_of(self.flat)[0])

    def check_tasks(self, tasks: int) -> None:
        """Raise unless these are ``tasks`` tensors, one a task."""
        if self.nested or self.tasks != tasks:
            got = f"{self.tasks} {'lists' if self.nested else 'tensors'}"
            raise ValueError(f"grads: expected {tasks} tensors for {tasks} tasks, got {got}")

    def check_batched(self) -> None:
        """Raise unless every gradient has a batch dimension."""
        if any(tensor.dim() == 0 for tensor in present_of(self.flat)):
            raise ValueError("grads: expected gradients with a batch dimension 0, got 0-d tensors")

    def columns(self) -> list[list[Tensor | None]]:
        """The T gradients of each of the N tensors.

        Raises:
            ValueError: one has none.
        """
        result = columns(self.flat, self.tasks)
        for n, column in enumerate(result):
            if not present_of(column):
                raise ValueError(f"grads: expected at least one gradient of tensor {n}, got none")
        return result

    def check_out(self, out: Sequence[Tensor], *, nested: bool) -> None:
        """Raise unless ``out`` has the form, shapes, dtypes and device of one task's gradient."""
        expected = len(self.flat) // self.tasks
        if nested != self.nested or len(out) != expected:
            raise ValueError(
                f"out: expected {f'{expected} tensors' if self.nested else 'a tensor'}, as the gradients are "
                f"{'lists' if self.nested else 'tensors'}, got {f'{len(out)} tensors' if nested else 'a tensor'}"
            )
        for n, (target, column) in enumerate(zip(out, self.columns(), strict=True)):
            like = present_of(column)[0]
            if (target.shape, target.dtype, target.device) != (like.shape, like.dtype, like.device):
                raise ValueError(
                    f"out[{n}]: expected {list(like.shape)} {like.dtype} on {like.device}, got "
                    f"{list(target.shape)} {target.dtype} on {target.device}"
                )


def _agree(flat: Sequence[Tensor | None], tasks: int) -> bool:
    """Whether these are gradients of one kind, with the same shapes for all tasks.

    Nothing but that, in few steps: with hundreds of tensors they are most of a call.
    """
    present = present_of(flat)
    if not present or not all(isinstance(tensor, Tensor) for tensor in present):
        return False
    dtypes, devices = {tensor.dtype for tensor in present}, {tensor.device for tensor in present}
    if len(dtypes) != 1 or len(devices) != 1 or present[0].dtype not in DTYPES:
        return False
    if len(present) == len(flat):
        shapes, count = [tensor.shape for tensor in present], len(flat) // tasks
        return all(shapes[first : first + count] == shapes[:count] for first in range(count, len(flat), count))
    return all(tensor.shape == column[0].shape for column in map(present_of, columns(flat, tasks)) for tensor in column)


def _check_column(n: int, column: Sequence[Tensor | None]) -> None:
    first = None
    for task, tensor in enumerate(column):
        if tensor is None:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"grads[{task}]: expected tensors (or None), got {type(tensor).__name__}")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"grads[{task}]: expected one of {', '.join(map(str, DTYPES))}, got {tensor.dtype}")
        first = tensor if first is None else first
        if (tensor.shape, tensor.dtype, tensor.device) != (first.shape, first.dtype, first.device):
            raise ValueError(
                f"grads[{task}]: expected {list(first.shape)} {first.dtype} on {first.device}, like the other tasks' "
                f"tensor {n}, got {list(tensor.shape)} {tensor.dtype} on {tensor.device}"
            )


def as_lists(grads: Gradients) -> TaskLists:
    """``grads`` as a task-major list.

    Raises:
        TypeError: not tensors, lists of tensors or a matrix; a dtype that is not floating point.
        ValueError: no task, more than 64, lists of different lengths, shapes, dtypes or devices that do not agree.
    """
    if isinstance(grads, Tensor):
        if grads.dim() < 2:
            raise ValueError(
                f"grads: expected a [T, P] matrix or T tensors, got one tensor of shape {list(grads.shape)}"
            )
        per_task: list[list[Tensor | None]] = [[row] for row in grads.unbind()]
        nested = False
    elif isinstance(grads, Sequence) and not isinstance(grads, str):
        nested = any(isinstance(task, Sequence) for task in grads)
        if nested and not all(isinstance(task, Sequence) for task in grads):
            raise TypeError("grads: expected T tensors or T lists of tensors, got a mixture")
        per_task = [list(task) if nested else [task] for task in grads]  # type: ignore[arg-type, list-item]
    else:
        raise TypeError(f"grads: expected T tensors, T lists of tensors or a [T, P] matrix, got {type(grads).__name__}")
    tasks = len(per_task)
    if not 1 <= tasks <= MAX_TASKS:
        raise ValueError(f"grads: expected 1 to {MAX_TASKS} tasks, got {tasks}")
    if len({len(task) for task in per_task}) != 1:
        raise ValueError(f"grads: expected lists of one length, got {[len(task) for task in per_task]}")
    flat = [tensor for task in per_task for tensor in task]
    if not _agree(flat, tasks):
        for n, column in enumerate(columns(flat, tasks)):
            _check_column(n, column)
        if not present_of(flat):
            raise ValueError("grads: expected at least one gradient, got none")
        raise ValueError("grads: expected one dtype and one device, got several")
    return TaskLists(flat, tasks, nested)
