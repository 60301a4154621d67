"""The tasks of a balancer: their names, and reading what users pass per task (losses, presence, numbers)."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastmtl.backends.contract import MAX_TASKS

TasksLike: TypeAlias = int | Sequence[str]
Losses: TypeAlias = Tensor | Sequence[Tensor | None] | Mapping[str, Tensor]
Presence: TypeAlias = Tensor | Sequence[bool] | Mapping[str, bool] | Collection[str]


@dataclass(frozen=True)
class Batch:
    """The losses of one batch."""

    losses: list[Tensor]  # T scalars; a zero stands for an absent one
    present: Tensor  # [T] bool
    absent: tuple[bool, ...]  # which are known on the host to be absent: their graph gets no gradient


class Tasks:
    """T tasks, by number or by name."""

    def __init__(self, tasks: TasksLike):
        self.named = not isinstance(tasks, int)
        self._masks: dict[tuple[tuple[bool, ...], torch.device], Tensor] = {}
        if isinstance(tasks, bool) or not isinstance(tasks, (int, Sequence)) or isinstance(tasks, str):
            raise TypeError(f"tasks: expected a number of tasks or a sequence of names, got {tasks!r}")
        self.names = tuple(str(k) for k in range(tasks)) if isinstance(tasks, int) else tuple(tasks)
        if not all(isinstance(name, str) and name for name in self.names) or len(set(self.names)) != len(self.names):
            raise ValueError(f"tasks: expected different non-empty names, got {list(self.names)}")
        if not 1 <= len(self.names) <= MAX_TASKS:
            raise ValueError(f"tasks: expected 1 to {MAX_TASKS} tasks, got {len(self.names)}")

    def __len__(self) -> int:
        return len(self.names)

    def pack(self, items: Sequence[Any]) -> Any:
        """T items as users receive them: a dict by name, or a tuple."""
        return dict(zip(self.names, items, strict=True)) if self.named else tuple(items)

    def _in_order(self, argument: str, values: Mapping[str, Any]) -> list[Any]:
        if not self.named:
            raise TypeError(
                f"{argument}: expected a sequence of {len(self)}, as the tasks have no names, got a mapping"
            )
        unknown = [name for name in values if name not in self.names]
        if unknown:
            raise ValueError(f"{argument}: unknown tasks {unknown}; the tasks are {list(self.names)}")
        return [values.get(name) for name in self.names]

    def _listed(self, argument: str, values: Iterable[Any]) -> list[Any]:
        listed = list(values)
        if len(listed) != len(self):
            raise ValueError(f"{argument}: expected {len(self)} values, one a task, got {len(listed)}")
        return listed

    def numbers(self, argument: str, values: Any) -> Tensor:
        """[T] float32 positive finite numbers from a tensor, a sequence or a mapping by name."""
        if not isinstance(values, (Mapping, Sequence, Tensor)) or (isinstance(values, Tensor) and values.dim() != 1):
            raise TypeError(f"{argument}: expected {len(self)} numbers, or a dict by name, got {values!r}")
        listed = self._in_order(argument, values) if isinstance(values, Mapping) else self._listed(argument, values)
        try:
            floats = [math.nan if value is None else float(value) for value in listed]
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{argument}: expected a number for every task, got {listed}") from error
        if not all(math.isfinite(value) and value > 0 for value in floats):
            raise ValueError(f"{argument}: expected a positive finite number for every task, got {floats}")
        return torch.tensor(floats, dtype=torch.float32)

    def choices(self, argument: str, values: Any, options: Sequence[str]) -> tuple[str, ...]:
        """One of ``options`` for each task, from one for all, a sequence or a mapping by name."""
        if isinstance(values, str):
            listed: list[Any] = [values] * len(self)
        elif not isinstance(values, (Mapping, Sequence)):
            raise TypeError(f"{argument}: expected one of {list(options)}, a list or a dict of them, got {values!r}")
        else:
            listed = self._in_order(argument, values) if isinstance(values, Mapping) else self._listed(argument, values)
        if not all(value in options for value in listed):
            raise ValueError(f"{argument}: expected one of {list(options)} for every task, got {listed}")
        return tuple(listed)

    def _presence(self, present: Presence | None) -> tuple[list[bool], Tensor | None]:
        """What is known on the host, and a [T] bool tensor where presence is data."""
        if present is None:
            return [True] * len(self), None
        if isinstance(present, Tensor):
            if present.shape != (len(self),) or present.dtype != torch.bool:
                raise ValueError(
                    f"present: expected [{len(self)}] bool, got shape {list(present.shape)}, {present.dtype}"
                )
            return [True] * len(self), present
        if isinstance(present, Mapping):
            return [bool(value) for value in self._in_order("present", present)], None
        if isinstance(present, str) or not isinstance(present, Collection):
            raise TypeError(
                f"present: expected {len(self)} booleans, a mapping or names of tasks, or a [T] bool tensor, got {present!r}"
            )
        listed = list(present)
        if self.named and all(isinstance(name, str) for name in listed):
            chosen = self._in_order("present", dict.fromkeys(listed, True))
            return [bool(value) for value in chosen], None
        if not all(isinstance(value, bool) for value in listed):
            raise TypeError(f"present: expected booleans{', or names of tasks' if self.named else ''}, got {listed}")
        return self._listed("present", listed), None

    def batch(self, losses: Losses, present: Presence | None, device: torch.device, *, need_grad: bool) -> Batch:
        """Read the losses of a batch.

        Raises:
            TypeError, ValueError: wrong number or names of tasks, a loss that is not a floating-point scalar on
                ``device`` or (``need_grad``) does not require grad, no task present.
        """
        if isinstance(losses, Tensor):
            if losses.shape != (len(self),):
                raise ValueError(f"losses: expected shape [{len(self)}], one loss a task, got {list(losses.shape)}")
            listed: list[Tensor | None] = list(losses.unbind())
        elif isinstance(losses, Mapping):
            listed = self._in_order("losses", losses)
        elif isinstance(losses, Sequence):
            listed = self._listed("losses", losses)
        else:
            raise TypeError(
                f"losses: expected a [T] tensor, a sequence or a mapping by name, got {type(losses).__name__}"
            )
        known, mask = self._presence(present)
        absent = tuple(loss is None or not here for loss, here in zip(listed, known, strict=True))
        if all(absent):
            raise ValueError("losses: expected at least one present task, got none")
        read = [
            torch.zeros((), dtype=torch.float32, device=device)
            if gone
            else self._check_loss(name, loss, device, need_grad)
            for name, loss, gone in zip(self.names, listed, absent, strict=True)
        ]
        known_mask = self._mask(absent, device)
        return Batch(read, known_mask if mask is None else mask.to(device) & known_mask, absent)

    def _mask(self, absent: tuple[bool, ...], device: torch.device) -> Tensor:
        """[T] bool, which tasks are present; kept, since a copy to a device in every step would wait for it."""
        if torch.compiler.is_compiling():
            return torch.tensor([not gone for gone in absent], device=device)
        mask = self._masks.get((absent, device))
        if mask is None:
            mask = torch.tensor([not gone for gone in absent], device=device)
            if type(mask) is Tensor and not mask.is_inference():  # not one of a fake or an inference mode
                self._masks[absent, device] = mask
        return mask

    @staticmethod
    def _check_loss(name: str, loss: Any, device: torch.device, need_grad: bool) -> Tensor:
        if not isinstance(loss, Tensor):
            raise TypeError(f"losses[{name!r}]: expected a scalar tensor, got {type(loss).__name__}")
        if loss.numel() != 1 or not loss.is_floating_point() or loss.device != device:
            raise ValueError(
                f"losses[{name!r}]: expected one floating-point number on {device} (reduce the loss; move the balancer), "
                f"got shape {list(loss.shape)}, {loss.dtype} on {loss.device}"
            )
        if need_grad and not loss.requires_grad:
            raise ValueError(
                f"losses[{name!r}]: does not require grad. Was it detached? Leave out a task that is absent (or pass "
                "present=), or call balancer.eval() to weigh without training"
            )
        return loss
