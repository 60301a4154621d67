"""Balancers that measure the tasks' gradients inside the backward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from fastmtl import fork as forks
from fastmtl import ops
from fastmtl.balancers.base import Balancer, Tail, per_task, recomputing
from fastmtl.balancers.numbers import number_or_scalar, whole
from fastmtl.balancers.structure import flatten
from fastmtl.balancers.tasks import Batch, Losses, Presence, TasksLike
from fastmtl.sources import Measured, Parameters, SourceLike, Statistics, gram_of, resolve, squared_norms_of
from fastmtl.sources.graph import edges_of, mixes_samples, nodes_between


class MeasuringBalancer(Balancer):
    """A balancer that measures the tasks' gradients inside the backward; subclasses define `take` and `sum_and_take`."""

    def __init__(self, tasks: TasksLike, *, source: SourceLike, statistics: Statistics, update_every: int):
        super().__init__(tasks)
        self.statistics: Statistics = statistics
        self._source = resolve(source, len(self._tasks), statistics)
        self.update_every = whole("update_every", update_every)
        self._steps = 0  # counts on for `update_every`
        self._forked = False
        self._token: Tensor | None = None
        self._places: list[Node] = []  # whose gradients the fork of `_token` measures, until samples were looked at
        self._warned_of_ranks = False
        self._looked_for_mixed_samples = statistics != "moments"

    def take(self, measured: Measured, message: Tensor, batch: int) -> None:
        """Called once in each measured backward, see `fastmtl.fork.Rule`."""
        raise NotImplementedError(f"{type(self).__name__} must define take")

    def sum_and_take(self, grads: Sequence[Tensor | None], message: Tensor, batch: int) -> Tensor:
        """Called in its place where one op can do both, see `fastmtl.fork.Rule`."""
        raise NotImplementedError(f"{type(self).__name__} must define sum_and_take")

    def forward(self, losses: Losses, *, present: Presence | None = None) -> Tensor:
        """As `Balancer.forward`; in training it completes the fork before it.

        Raises:
            RuntimeError: in training without a fork before it.
            TypeError, ValueError: as for `Balancer.forward`.
        """
        batch = self._batch(losses, present)
        if not self._training_now() or recomputing():
            return self._weigh(batch, None)
        if not self._forked:
            raise RuntimeError(
                "balancer(losses) was called without a fork: call balancer.fork(features) once before each call, or "
                "balancer.backward(losses, params) in code that cannot fork"
            )
        token, self._token, self._forked = self._token, None, False
        if token is not None and not self._looked_for_mixed_samples and not torch.compiler.is_compiling():
            self._warn_of_mixed_samples(batch)
        return self._weigh(batch, token)

    def backward(
        self,
        losses: Losses,
        params: Sequence[Tensor] | None = None,
        *,
        present: Presence | None = None,
        scale: float | Tensor = 1.0,
    ) -> Tensor:
        """Measure at ``params``, weigh and run the backward: the universal way, for code that cannot fork.

        Takes one vector-Jacobian product a task from its loss to ``params``, then the ordinary backward of the weighted sum:
        ``.grad`` of every leaf is filled (and hooks run) as by ``(scale * sum_k w_k L_k).backward()``.

        Args:
            losses, present: as in a call.
            params: the shared parameters at which the tasks are compared, such as those of the last shared layer.
            scale: factor of the loss, a number or a tensor of one: one over the accumulation steps, or of a ``GradScaler``
                ``scaler.scale(torch.ones((), device=device))``, which stays on the device.

        Returns:
            The weighted loss, detached and without the scale.

        Raises:
            ValueError, TypeError: no parameters, or none that the losses depend on; ``scale`` is no number; as for a call.
            RuntimeError: the balancer is in eval mode, or gradients are off.
        """
        if not self._training_now():
            raise RuntimeError("balancer.backward: expected a balancer in training mode with gradients enabled")
        if params is None:
            raise TypeError("params: expected the parameters at which to compare the tasks, got none")
        scale = number_or_scalar("scale", scale)
        targets = Parameters(params, self.statistics, "params").parameters
        for index, target in enumerate(targets):
            if not target.requires_grad:
                raise ValueError(f"params[{index}]: does not require grad, so no gradient can be measured")
        batch = self._batch(losses, present)
        factor = torch.as_tensor(scale, dtype=torch.float32, device=self.weights.device)
        due = self._due()
        if due:
            _, message = ops.weigh([loss.detach() for loss in batch.losses], self.weights, batch.present)
            measured, missing = self._measured_at(targets, batch, factor)
            message = forks.mark_missing(message, missing, len(self._tasks))
        loss = self._weigh(batch, None)
        (loss * factor).backward()
        self._steps += 1
        if due:
            # As they would arrive at a fork: of the weighted losses.
            used = message[2 + len(self._tasks) : 2 + 2 * len(self._tasks)]
            factors = used.square() if self.statistics == "norms" else torch.outer(used, used)
            self.take((measured * factors,), ops.with_scale(message, factor), 1)
        return loss.detach()

    def _measured_at(self, targets: Sequence[Tensor], batch: Batch, factor: Tensor) -> tuple[Tensor, list[int]]:
        """Statistics of the gradients of ``factor * L_k`` at ``targets``, and the tasks that have none there."""
        reached: list[int] = []
        nothing = (None,) * len(targets)

        def gradients() -> Iterator[Sequence[Tensor | None]]:
            for task, (loss, gone) in enumerate(zip(batch.losses, batch.absent, strict=True)):
                if gone:
                    yield nothing
                    continue
                slope = factor.to(loss.dtype).expand_as(loss)
                grads = torch.autograd.grad(loss, targets, slope, retain_graph=True, allow_unused=True)
                if any(grad is not None for grad in grads):
                    reached.append(task)
                yield grads

        measured = (squared_norms_of if self.statistics == "norms" else gram_of)(gradients(), factor.device)
        if not reached:
            raise ValueError("params: none of them has a part in any of the losses")
        return measured, [task for task in range(len(self._tasks)) if task not in reached]

    def _due(self) -> bool:
        """Whether this step is measured."""
        if self.update_every > 1 and torch.compiler.is_compiling():
            raise RuntimeError("update_every: expected 1 in a compiled step, as the count of steps lives on the host")
        return self.update_every == 1 or self._steps % self.update_every == 0

    def _views(self, levels: list[Tensor], rebuild: Callable[[Sequence[Tensor]], Any], tail: Tail | None) -> list[Any]:
        for index, level in enumerate(levels):
            if not level.requires_grad:
                raise ValueError(
                    f"features[{index}]: does not require grad, so no gradient can be measured. Is the backbone frozen, or "
                    "the tensor detached? Call balancer.eval() to weigh without measuring"
                )
            if level.device != self.weights.device:
                raise ValueError(
                    f"features[{index}]: expected on {self.weights.device}, where the balancer is, got "
                    f"{level.device}: call balancer.to({str(level.device)!r})"
                )
        due = self._due()
        if due and self.statistics == "moments":
            _check_samples(levels)
        if self._token is not None and not torch.compiler.is_compiling():
            warnings.warn(
                "fork() was called before balancer(losses) took the fork before it; that one will measure nothing",
                stacklevel=4,
            )
        if not torch.compiler.is_compiling():
            self._warn_of_ranks()
        self._token, self._forked = None, False
        structures = self._measured_views(levels, rebuild, tail) if due else super()._views(levels, rebuild, tail)
        self._forked = True
        if not torch.compiler.is_compiling():  # an int that changes would make the compiler start again
            self._steps += 1
        return structures

    def _measured_views(
        self, levels: list[Tensor], rebuild: Callable[[Sequence[Tensor]], Any], tail: Tail | None
    ) -> list[Any]:
        tasks, batch = len(self._tasks), levels[0].shape[0] if levels[0].dim() else 1
        if torch.compiler.is_compiling():
            views, self._token = forks.fork(levels, tasks, self, self._source.locate(levels, None), batch)
            structures = per_task(views, rebuild)
            return structures if tail is None else [tail(structure) for structure in structures]
        before = None
        if tail is not None:
            # Measured at views, so that the levels count as independent also where one was computed from another.
            before = [level.view_as(level) for level in levels]
            levels, rebuild = flatten(tail(rebuild(before)), "what tail returns")
            if not all(level.requires_grad for level in levels):
                raise ValueError(
                    "tail: expected a result that requires grad, so that gradients reach the features, got none"
                )
        probe = self._source.locate(levels, before)
        views, self._token = forks.fork(levels, tasks, self, probe, batch)
        if not self._looked_for_mixed_samples:
            self._places = probe.places() or [get_gradient_edge(self._token).node]
        return per_task(views, rebuild)

    def _warn_of_mixed_samples(self, batch: Batch) -> None:
        """Once: batch norm in training between the source and the losses makes the samples depend on each other."""
        places, self._places, self._looked_for_mixed_samples = self._places, [], True
        losses = [loss for loss, gone in zip(batch.losses, batch.absent, strict=True) if not gone]
        if any(mixes_samples(node) for node in nodes_between(edges_of(losses), places)):
            warnings.warn(
                "there is batch norm in training mode between the source and the losses: it makes the samples of a batch "
                "depend on each other, so variance and what follows from it are off",
                stacklevel=4,
            )

    def _warn_of_ranks(self) -> None:
        distributed = torch.distributed
        if not self._warned_of_ranks and distributed.is_available() and distributed.is_initialized():
            self._warned_of_ranks = True
            if distributed.get_world_size() > 1:
                warnings.warn(
                    "each rank measures its own gradients, so the weights of the ranks drift apart: data parallel training "
                    "is not supported yet",
                    stacklevel=5,
                )

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: without a fork in flight, which belongs to the graph of this process."""
        return {**self.__dict__, "_token": None, "_forked": False, "_places": []}

    def get_extra_state(self) -> dict[str, Any]:
        """Adds the position in the cycle of ``update_every``."""
        return {**super().get_extra_state(), "steps": self._steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on in the cycle of ``update_every``."""
        super().set_extra_state(state)
        self._steps = int(state["steps"])


def _check_samples(levels: Sequence[Tensor]) -> None:
    sizes = {level.shape[0] if level.dim() else 0 for level in levels}
    if len(sizes) != 1 or min(sizes) < 2:
        raise ValueError(
            "features: expected at least 2 samples in dimension 0, of every tensor the same number, to measure per-sample "
            f"gradients: one sample has no variance. Got shapes {[list(level.shape) for level in levels]}"
        )
