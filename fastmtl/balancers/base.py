"""What all balancers share: fork, weighted sum, state that survives dtype casts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fastmtl import fork as forks
from fastmtl.balancers.numbers import number_or_scalar
from fastmtl.balancers.structure import Features, flatten
from fastmtl.balancers.tasks import Batch, Losses, Presence, Tasks, TasksLike

Self = TypeVar("Self", bound="Balancer")
Tail = Callable[[Any], Any]


class Balancer(nn.Module):
    """Weighs the losses of T tasks that share features.

    Use it in a training step as::

        views = balancer.fork(backbone(x))
        losses = {name: loss_of[name](head[name](views[name]), y[name]) for name in tasks}
        balancer(losses).backward()

    Args:
        tasks: the number of tasks, 1 to 64, or their names.
    """

    weights: Tensor

    def __init__(self, tasks: TasksLike):
        super().__init__()
        self._tasks = Tasks(tasks)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks; "0", "1", ... where none were given."""
        return self._tasks.names

    # -- the step ------------------------------------------------------------------------------------------------------

    def fork(self, features: Features, *, tail: Tail | None = None) -> Any:
        """T views of the shared features, one for each head. No data is copied.

        Args:
            features: a floating-point tensor, or a tuple, list or dict of them (a feature pyramid).
            tail: shared operations that follow, applied to ``features`` before the heads; the gradients are then measured
                at ``features`` and not at the result. Needed only where the backbone is compiled and the place of
                measurement is not its end. A compiled step applies it to each view, so there it must not be random or
                keep statistics (dropout, batch norm in training).

        Returns:
            A tuple of T views, or a dict by name where the tasks have names; each like ``features`` (like ``tail``'s
            result). In-place operations on a view raise torch's error: the views share memory.

        Raises:
            TypeError, ValueError: what is not a tensor of floating-point numbers; a measuring balancer whose
                features do not require grad, are on another device than its state, or do not come from its source.
        """
        levels, rebuild = flatten(features, "features")
        if tail is not None and not callable(tail):
            raise TypeError(f"tail: expected a function of the features, got {tail!r}")
        if not self._training_now():
            if tail is not None:
                levels, rebuild = flatten(tail(features), "what tail returns")
            return self._tasks.pack(
                [rebuild(levels) for _ in self.tasks]
            )  # heads may change a list or dict of their own
        if recomputing():  # the first run's fork is the one that measures
            return self._tasks.pack(Balancer._views(self, levels, rebuild, tail))
        return self._tasks.pack(self._views(levels, rebuild, tail))

    def _views(self, levels: list[Tensor], rebuild: Callable[[Sequence[Tensor]], Any], tail: Tail | None) -> list[Any]:
        if tail is not None:
            levels, rebuild = flatten(tail(rebuild(levels)), "what tail returns")
        return per_task(forks.join(levels, len(self._tasks)), rebuild)

    def forward(self, losses: Losses, *, present: Presence | None = None) -> Tensor:
        """The scalar sum_k w_k L_k, w from before this step's update.

        Args:
            losses: [T] tensor, sequence of T scalars, or dict by name; reduced and unweighted, float32, bfloat16,
                float16 or float64. A task that is absent from this batch is missing in the dict, or None in the
                sequence.
            present: which tasks are in this batch: T booleans, a dict of booleans, names, or a [T] bool tensor. The
                loss of an absent task is ignored, whatever it is.

        Returns:
            0-d float32 (float64 where a loss is float64).

        Raises:
            TypeError, ValueError: wrong number or names of tasks; a loss that is not a scalar, or (in training) does
                not require grad; no task present.
        """
        return self._weigh(self._batch(losses, present), None)

    def _training_now(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def _batch(self, losses: Losses, present: Presence | None) -> Batch:
        return self._tasks.batch(losses, present, self.weights.device, need_grad=self._training_now())

    def _weigh(self, batch: Batch, token: Tensor | None) -> Tensor:
        return forks.weighted_sum(batch.losses, self.weights, batch.present, batch.absent, token)

    def backward(
        self,
        losses: Losses,
        params: Sequence[Tensor] | None = None,
        *,
        present: Presence | None = None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """Weigh and run the backward: ``.grad`` of every leaf is filled as by ``(scale * balancer(losses)).backward()``.

        Args:
            losses, present: as in a call.
            params: the parameters at which a measuring balancer compares the tasks; others ignore it.
            scale: factor of the loss, a number or a tensor of one: one over the accumulation steps, or of a ``GradScaler``
                ``scaler.scale(torch.ones((), device=device))``, which stays on the device.

        Returns:
            The weighted loss, detached and without the scale.

        Raises:
            TypeError: ``scale`` is no number.
        """
        scale = number_or_scalar("scale", scale)
        loss = self(losses, present=present)
        (loss * scale).backward()
        return loss.detach()

    # -- looking at it -------------------------------------------------------------------------------------------------

    def report(self) -> dict[str, float]:
        """Scalars for a logger; the only place that waits for the device."""
        return self._by_task("weight", self.weights)

    def _by_task(self, what: str, values: Tensor) -> dict[str, float]:
        return {f"{what}/{name}": value for name, value in zip(self.tasks, values.tolist(), strict=True)}

    def end_epoch(self) -> None:
        """Tell the balancer that an epoch has ended; only those that work by epochs do something."""

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"tasks={list(self.tasks) if self._tasks.named else len(self.tasks)}"

    # -- state ---------------------------------------------------------------------------------------------------------

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the state, but keep its dtype: a network cast to bfloat16 must not round the weights."""

        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, recurse)

    def get_extra_state(self) -> dict[str, Any]:
        """What the state dict holds besides tensors."""
        return {"tasks": list(self.tasks), "balancer": type(self).__name__}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """What is there to check is checked before anything is loaded."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        extra = state_dict.get(f"{prefix}_extra_state")
        if extra is not None and extra.get("balancer", type(self).__name__) != type(self).__name__:
            raise ValueError(f"state_dict: expected that of {type(self).__name__}, got that of {extra['balancer']}")
        if extra is not None and list(extra["tasks"]) != list(self.tasks):
            raise ValueError(f"state_dict: expected the tasks {list(self.tasks)}, got {extra['tasks']}")
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def recomputing() -> bool:
    """Whether a checkpointed function (``use_reentrant=False``) runs anew, inside the backward, for what was not kept."""
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:
        return False
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    return hooks is not None and getattr(hooks[0], "__qualname__", "").startswith("_recomputation_hook.")


def per_task(views: list[list[Tensor]], rebuild: Callable[[Sequence[Tensor]], Any]) -> list[Any]:
    """[N levels][T tasks] views to T structures."""
    return [rebuild(list(levels)) for levels in zip(*views, strict=True)]
