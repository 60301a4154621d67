"""What every backend implements: the ops' schemas and the conventions that all of them share.

- Lists are task-major: ``T`` tasks of ``N`` tensors each are passed as ``T * N`` tensors, task after task.
- ``None`` stands for a gradient that did not arrive; it counts as zeros.
- Statistics (``M``, ``Q``, squared norms) are float32, and float64 where the gradients are float64.
- The sum of gradients keeps their dtype and is formed in float32 (float64 for float64), in the order of the tasks.
- A *message* is the float32 vector ``[valid, scale, L_1..L_T, w_1..w_T, present_1..present_T]`` that the backward of
  the weighted sum sends to the fork: what the update of the weights needs to know besides the gradients. ``valid``
  is 1; ``present_k`` is 1, 0 for a task that is absent, and 2 for one that is present but whose gradient did not
  arrive.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

MAX_TASKS = 64
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_GRADNORM = (
    "Tensor message, Tensor(a!) weights, Tensor(b!) initial_losses, Tensor(c!) exp_avg, Tensor(d!) exp_avg_sq, "
    "Tensor(e!) steps, Tensor(f!) weight_sum, Tensor(g!) norms, Tensor(h!) rates, Tensor(i!) counters, "
    "Tensor(j!) task_counters, float alpha, float lr, bool adam, float beta1, float beta2, float eps, float min_weight"
)
_GNR = (
    "Tensor message, Tensor(a!) weights, Tensor(b!) moments, Tensor(c!) averages, Tensor(d!) shares, "
    "Tensor(e!) samples, Tensor(f!) counters, Tensor(g!) task_counters, int batch, int accumulation, bool loss_sum, "
    "str objective, float decay, float step, float floor"
)

SCHEMAS = {
    "sum_moments": "(Tensor?[] grads) -> (Tensor total, Tensor M, Tensor Q)",
    "sum_norms": "(Tensor?[] grads) -> (Tensor total, Tensor squared_norms)",
    "gram": "(Tensor?[] tensors, int tasks) -> Tensor",
    "squared_norms": "(Tensor?[] tensors, int tasks) -> Tensor",
    "weighted_sum": "(Tensor?[] tensors, int tasks, Tensor weights) -> Tensor[]",
    "weighted_sum_out": "(Tensor?[] tensors, int tasks, Tensor weights, Tensor(a!)[] out) -> ()",
    "cross_gram": "(Tensor?[] left, Tensor?[] right) -> Tensor",
    "sample_gram": "(Tensor?[] grads, Tensor weights) -> Tensor",
    "linear_moments": ("(Tensor input, Tensor?[] grads, bool bias, bool per_sample, str way) -> (Tensor M, Tensor Q)"),
    "conv_moments": (
        "(Tensor input, Tensor?[] grads, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, "
        "bool transposed, str padding_mode, bool bias, bool per_sample, str way) -> (Tensor M, Tensor Q)"
    ),
    "embedding_moments": (
        "(Tensor indices, Tensor?[] grads, int? padding_idx, bool per_sample, str way) -> (Tensor M, Tensor Q)"
    ),
    "norm_moments": (
        "(Tensor normalized, Tensor?[] grads, int[] parameter_dims, bool bias, bool per_sample) -> (Tensor M, Tensor Q)"
    ),
    "weigh": "(Tensor[] losses, Tensor weights, Tensor present) -> (Tensor loss, Tensor message)",
    "gradnorm_update": f"(Tensor squared_norms, {_GRADNORM}) -> ()",
    "gnr_update": f"(Tensor M, Tensor? Q, {_GNR}) -> ()",
    # The fork's op and the update after it, in one launch on a GPU.
    "sum_norms_update": f"(Tensor?[] grads, {_GRADNORM}) -> (Tensor total, Tensor squared_norms)",
    "sum_moments_update": f"(Tensor?[] grads, {_GNR}) -> (Tensor total, Tensor M, Tensor Q)",
}

# Made of the other ops and of matrix products, by `layer_moments`: the same code for every backend.
COMPOSED = ("linear_moments", "conv_moments", "embedding_moments", "norm_moments")
# Two ops one after the other, by `followed_by`, where a backend has no launch for both.
FUSED = ("sum_norms_update", "sum_moments_update")


def followed_by(measure: Callable[..., Any], update: Callable[..., None]) -> Callable[..., Any]:
    """The op that measures gradients, and then updates with what was measured and the other arguments."""

    def op(grads: Sequence[Tensor | None], *arguments: Any) -> Any:
        total, *measured = measure(grads)
        update(*measured, *arguments)
        return (total, *measured)

    return op


def present_of(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """The gradients that arrived."""
    return [tensor for tensor in tensors if tensor is not None]


def statistics_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype of norms and moments of gradients like ``tensor``."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one block of memory without gaps or overlaps, in any order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


def empty_total(grads: Sequence[Tensor | None]) -> Tensor:
    """Uninitialised memory for the sum of ``grads``: laid out as the first dense one, contiguous where none is dense."""
    present = present_of(grads)
    for grad in present:
        if is_dense(grad):
            return torch.empty_like(grad)
    return torch.empty_like(present[0], memory_format=torch.contiguous_format)


def columns(tensors: Sequence[Tensor | None], tasks: int) -> list[list[Tensor | None]]:
    """Task-major list to N lists of T tensors: the same tensor of every task side by side."""
    per_task = len(tensors) // tasks
    return [list(tensors[n::per_task]) for n in range(per_task)]
