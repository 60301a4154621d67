"""How a layer was used in one forward pass, read from the autograd graph: its input, and where its output's gradient is.

Per-sample gradients need both. The node of an operation keeps the layer's input for its own backward, so nothing is
stored twice and no hook on the module can go stale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from fastmtl import ops
from fastmtl.sources.base import widened
from fastmtl.sources.graph import BATCH_NORMS, is_bias_of, kept_tensor

Deltas: TypeAlias = Sequence[Tensor | None]  # T gradients at the layer's output
Moments: TypeAlias = Callable[[Deltas], tuple[Tensor, Tensor]]
_LINEAR = ("AddmmBackward0", "MmBackward0")
_VIEWS = ("ViewBackward0", "UnsafeViewBackward0")


@dataclass(frozen=True)
class LayerUse:
    """One use of a layer."""

    output: GradientEdge  # where the gradients at the layer's output arrive
    moments: Moments  # M and Q of the layer's trained parameters, from these gradients


@dataclass(frozen=True)
class _Operation:
    """The node that uses a layer's weight."""

    module: Any
    node: Any
    position: int  # which of the node's inputs the weight is
    bias: bool
    batch: int

    @property
    def name(self) -> str:
        return type(self.module).__name__

    def input(self, name: str) -> Tensor:
        """The layer's input."""
        kept = kept_tensor(self.node, name)
        if kept is None:
            raise ValueError(
                f"source: the input of {self.name} is not kept (activation checkpointing or saved-tensor hooks), and per-sample "
                "gradients need it: leave this layer out of the checkpointed part"
            )
        self.check_samples_first(kept.shape)
        return kept

    def check_samples_first(self, size: Sequence[int]) -> None:
        """Raise unless dimension 0 is that of the samples, or of several positions for each sample."""
        if not size or size[0] == 0 or size[0] % self.batch != 0:
            raise ValueError(
                f"source: expected an input of {self.name} whose first dimension is that of the {self.batch} samples of the "
                f"features, got shape {list(size)}: per-sample gradients need samples first (batch_first=True)"
            )

    def by_sample(self, tensor: Tensor) -> Tensor:
        """[B * n, ...] as [B, n, ...]."""
        return tensor.unflatten(0, (self.batch, -1))


def use_of(module: nn.Module, users: Sequence[tuple[Tensor, list[tuple[Node, int]]]], batch: int) -> LayerUse:
    """The one use of ``module``.

    Args:
        module: the layer.
        users: its trained parameters, each with the operations that use it and the position of the input that it is.
        batch: the number of samples.

    Raises:
        ValueError: the layer is used more than once, in a way that is not known, or does not keep its input; or samples
            are not its input's first dimension.
    """
    name = type(module).__name__
    by_parameter = {id(parameter): nodes for parameter, nodes in users}
    weight, bias = (getattr(module, part, None) for part in ("weight", "bias"))
    if weight is None or id(weight) not in by_parameter:
        raise ValueError(f"source: expected a layer whose weight is trained, got {module}")
    uses = by_parameter[id(weight)]
    if len(uses) != 1:
        raise ValueError(
            f"source: {name} is used {len(uses)} times before the fork; per-sample gradients need a layer that is used once"
        )
    ((node, position),) = uses
    trained_bias = bias is not None and id(bias) in by_parameter
    if trained_bias and not _adds_bias(node, by_parameter[id(bias)], weight, cast(Tensor, bias)):
        raise ValueError(
            f"source: the bias of {name} is not used together with its weight, or not as one number for each output"
        )
    read = _READERS.get(node.name())
    if "Compiled" in node.name():
        raise ValueError(
            f"source: {name} is part of a compiled backbone, where its input is out of reach: use source='features', or "
            "fork(layer_output, tail=the_rest)"
        )
    if read is None:
        raise ValueError(
            f"source: expected a linear, convolution, embedding or norm layer to measure per-sample gradients, got {name} "
            f"(its operation is {node.name()})"
        )
    return LayerUse(GradientEdge(node, 0), read(_Operation(module, node, position, trained_bias, batch)))


def _adds_bias(node: Any, uses: Sequence[tuple[Any, int]], weight: Tensor, bias: Tensor) -> bool:
    """Whether ``node`` itself adds the bias, or for products it is added right after (linear layers of strided inputs)."""
    if len(uses) != 1:
        return False
    ((user, _),) = uses
    if user is not node:
        plain = user.name() == "AddBackward0" and user._saved_alpha == 1
        product = user.next_functions[0][0] if plain else None
        while product is not None and product is not node and product.name() in _VIEWS:
            product = product.next_functions[0][0]
        if product is not node:
            return False
    if node.name() in _LINEAR:
        return is_bias_of(node, bias)
    return bias.shape == weight.shape if node.name() == "MulBackward0" else user is node


def _linear(operation: _Operation) -> Moments:
    node = operation.node
    if node.name() == "AddmmBackward0" and (node._saved_alpha != 1 or (operation.bias and node._saved_beta != 1)):
        raise ValueError(
            f"source: expected the plain product of input and weight in {operation.name}, got a multiple of it"
        )
    inputs = operation.input("mat1" if node.name() == "AddmmBackward0" else "self")
    # The layer's own input, before it was flattened to a matrix, where the graph still knows it.
    for before, _ in node.next_functions:
        if before is not None and before.name() in _VIEWS:
            operation.check_samples_first(before._saved_self_sym_sizes)

    def moments(deltas: Deltas) -> tuple[Tensor, Tensor]:
        by_sample = [None if delta is None else operation.by_sample(delta) for delta in deltas]
        return ops.linear_moments(operation.by_sample(inputs), by_sample, bias=operation.bias)

    return moments


def _convolution(operation: _Operation) -> Moments:
    inputs, node = operation.input("input"), operation.node
    if inputs.shape[0] != operation.batch:
        raise ValueError(
            f"source: expected one input of {operation.name} for each of the {operation.batch} samples of the features, got "
            f"{inputs.shape[0]}"
        )
    kernel = tuple(operation.module.weight.shape[2:])
    geometry: dict[str, Any] = {
        name: tuple(getattr(node, f"_saved_{name}")) for name in ("stride", "padding", "dilation")
    }
    form: dict[str, Any] = {"groups": int(node._saved_groups), "transposed": bool(node._saved_transposed)}
    return lambda deltas: ops.conv_moments(inputs, deltas, kernel, **geometry, **form, bias=operation.bias)


def _embedding(operation: _Operation) -> Moments:
    if operation.node._saved_scale_grad_by_freq:
        raise ValueError(
            "source: an embedding with scale_grad_by_freq=True mixes the samples of a batch: it has no per-sample gradients"
        )
    indices = operation.by_sample(operation.input("indices"))

    def moments(deltas: Deltas) -> tuple[Tensor, Tensor]:
        by_sample = [None if delta is None else operation.by_sample(delta) for delta in deltas]
        return ops.embedding_moments(indices, by_sample, padding_idx=operation.module.padding_idx)

    return moments


def _norm(operation: _Operation, dims: tuple[int, ...], normalized: Callable[[], Tensor]) -> Moments:
    return lambda deltas: ops.norm_moments(normalized(), deltas, dims, bias=operation.bias)


def _last(inputs: Tensor, count: int) -> tuple[int, ...]:
    return tuple(range(inputs.dim() - count, inputs.dim()))


def _layer_norm(operation: _Operation) -> Moments:
    inputs, node = operation.input("input"), operation.node
    mean, rstd = node._saved_result1, node._saved_result2
    dims = _last(inputs, len(node._saved_normalized_shape))
    return _norm(operation, dims, lambda: (widened(inputs) - mean) * rstd)


def _group_norm(operation: _Operation) -> Moments:
    inputs, node = operation.input("input"), operation.node
    mean, rstd = node._saved_result1.unsqueeze(-1), node._saved_result2.unsqueeze(-1)

    def normalized() -> Tensor:
        groups = widened(inputs).reshape(inputs.shape[0], int(node._saved_group), -1)
        return ((groups - mean) * rstd).reshape(inputs.shape)

    return _norm(operation, (1,), normalized)


def _rms_norm(operation: _Operation) -> Moments:
    inputs, rstd = operation.input("input"), operation.node._saved_result1
    return _norm(operation, _last(inputs, len(operation.node._saved_normalized_shape)), lambda: widened(inputs) * rstd)


def _scaling(operation: _Operation) -> Moments:
    """A product with the weight: what nn.RMSNorm ends with where torch has no fused one."""
    inputs, weight = operation.input("self" if operation.position == 1 else "other"), operation.module.weight
    if inputs.shape[inputs.dim() - weight.dim() :] != weight.shape:
        raise ValueError(
            f"source: expected {operation.name}'s weight to scale the last dimensions of {list(inputs.shape)}"
        )
    return _norm(operation, _last(inputs, weight.dim()), lambda: widened(inputs))


def _batch_norm(operation: _Operation) -> Moments:
    node = operation.node
    if getattr(node, "_saved_training", True):
        raise ValueError(
            f"source: {operation.name} in training mode computes with statistics of the whole batch, so samples have no "
            "gradients of their own and no variance can be measured. Give another layer, or use what needs the task "
            "gradients alone (MaxGNR's objective='intertask', GradNorm)"
        )
    inputs = operation.input("input")
    shape = (1, -1, *[1] * (inputs.dim() - 2))
    mean, variance = node._saved_running_mean.view(shape), node._saved_running_var.view(shape)
    return _norm(operation, (1,), lambda: (widened(inputs) - mean) * (variance + node._saved_eps).rsqrt())


_READERS: dict[str, Callable[[_Operation], Moments]] = {
    **dict.fromkeys(_LINEAR, _linear),
    "ConvolutionBackward0": _convolution,
    "EmbeddingBackward0": _embedding,
    "NativeLayerNormBackward0": _layer_norm,
    "NativeGroupNormBackward0": _group_norm,
    "FusedRmsNormBackward0": _rms_norm,
    "MulBackward0": _scaling,
    **dict.fromkeys(BATCH_NORMS, _batch_norm),
}
