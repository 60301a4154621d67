"""The torch operators: their registration, what they do on fake tensors, and the call into the chosen backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from fastmtl.backends.contract import SCHEMAS, columns, empty_total, present_of, statistics_dtype
from fastmtl.ops.selection import backend_for


def _fake_sum_moments(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor, Tensor]:
    total, tasks = empty_total(grads), len(grads)
    moments = [total.new_empty((tasks, tasks), dtype=statistics_dtype(total)) for _ in range(2)]
    return total, moments[0], moments[1]


def _fake_sum_norms(grads: Sequence[Tensor | None]) -> tuple[Tensor, Tensor]:
    total = empty_total(grads)
    return total, total.new_empty((len(grads),), dtype=statistics_dtype(total))


def _fake_sum_norms_update(grads: Sequence[Tensor | None], *_: object) -> tuple[Tensor, Tensor]:
    return _fake_sum_norms(grads)


def _fake_sum_moments_update(grads: Sequence[Tensor | None], *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return _fake_sum_moments(grads)


def _fake_gram(tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
    first = present_of(tensors)[0]
    return first.new_empty((tasks, tasks), dtype=statistics_dtype(first))


def _fake_squared_norms(tensors: Sequence[Tensor | None], tasks: int) -> Tensor:
    first = present_of(tensors)[0]
    return first.new_empty((tasks,), dtype=statistics_dtype(first))


def _fake_cross_gram(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> Tensor:
    first = present_of(left)[0]
    return first.new_empty((len(left), len(right)), dtype=statistics_dtype(first))


def _fake_sample_gram(grads: Sequence[Tensor | None], weights: Tensor) -> Tensor:
    return _fake_gram(grads, len(grads))


def _fake_layer_moments(inputs: Tensor, grads: Sequence[Tensor | None], *_: object) -> tuple[Tensor, Tensor]:
    return _fake_gram(grads, len(grads)), _fake_gram(grads, len(grads))


def _fake_weighted_sum(tensors: Sequence[Tensor | None], tasks: int, weights: Tensor) -> list[Tensor]:
    return [empty_total(column) for column in columns(tensors, tasks)]


def _fake_weigh(losses: Sequence[Tensor], weights: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    wide = any(loss.dtype == torch.float64 for loss in losses)
    loss = losses[0].new_empty((), dtype=torch.float64 if wide else torch.float32)
    return loss, losses[0].new_empty((2 + 3 * len(losses),), dtype=torch.float32)


def _fake_nothing(*_: object) -> None:
    return None


FAKES: dict[str, Callable[..., Any]] = {
    "sum_moments": _fake_sum_moments,
    "sum_norms": _fake_sum_norms,
    "gram": _fake_gram,
    "squared_norms": _fake_squared_norms,
    "weighted_sum": _fake_weighted_sum,
    "weighted_sum_out": _fake_nothing,
    "cross_gram": _fake_cross_gram,
    "sample_gram": _fake_sample_gram,
    "linear_moments": _fake_layer_moments,
    "conv_moments": _fake_layer_moments,
    "embedding_moments": _fake_layer_moments,
    "norm_moments": _fake_layer_moments,
    "weigh": _fake_weigh,
    "gradnorm_update": _fake_nothing,
    "gnr_update": _fake_nothing,
    "sum_norms_update": _fake_sum_norms_update,
    "sum_moments_update": _fake_sum_moments_update,
}


def _first(arguments: Sequence[Any], wanted: Callable[[Tensor], bool]) -> Tensor | None:
    """The first tensor, also within lists, that is ``wanted``."""
    for argument in arguments:
        for item in argument if isinstance(argument, (list, tuple)) else (argument,):
            if isinstance(item, Tensor) and wanted(item):
                return item
    return None


def _written(op: str) -> list[int]:
    """The positions of the arguments that an op changes."""
    arguments = torch._C.parse_schema(op + SCHEMAS[op]).arguments
    return [
        i for i, argument in enumerate(arguments) if argument.alias_info is not None and argument.alias_info.is_write
    ]


def _dispatcher(op: str) -> Callable[..., Any]:
    written = _written(op)

    def call(*arguments: Any) -> Any:
        # What is measured comes first, and its dtype decides; an embedding's indices before it are no gradients.
        first = _first(arguments, torch.is_floating_point)
        assert first is not None, "every op takes at least one tensor of floating point"
        function = getattr(backend_for(first.device, op, first.dtype), op)
        if torch.is_autocast_enabled(first.device.type):  # it would round what is measured to half precision
            with torch.autocast(first.device.type, enabled=False):
                result = function(*arguments)
        else:
            result = function(*arguments)
        if written:
            _note_changes([arguments[place] for place in written])
        return result

    return call


def _note_changes(written: Sequence[Any]) -> None:
    """Let autograd see that tensors, or lists of them, that it may have kept are not what they were."""
    tensors = written[0] if isinstance(written[0], list) else written
    if any(map(Tensor.is_inference, tensors)):  # these have no versions
        tensors = [tensor for tensor in tensors if not tensor.is_inference()]
    torch.autograd.graph.increment_version(tensors)


# Of what autograd may deliver: gradients that are to be negated when read, zeros without memory, and sparse ones.
_UNUSUAL = ("Negative", "ZeroTensor", "SparseCPU", "SparseCUDA", "SparseXPU")


def _plain(tensor: Tensor) -> Tensor:
    """The same with its values in memory as they are."""
    if tensor.layout is not torch.strided:
        return tensor.to_dense()
    if tensor._is_zerotensor():
        return torch.zeros(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    return tensor.resolve_neg()


def _with_plain_tensors(op: str) -> Callable[..., Any]:
    """What torch does by itself where there are no lists in which tensors may be missing."""
    written = _written(op)

    def call(*arguments: Any) -> Any:
        plain = tree_map_only(Tensor, _plain, arguments)
        for place in written:
            if any(a is not b for a, b in zip(*map(tree_leaves, (arguments[place], plain[place])), strict=True)):
                raise ValueError(
                    f"{op}: expected tensors to write to that hold their values, got negated or sparse ones"
                )
        return getattr(torch.ops.fastmtl, op).default(*plain)

    return call


def _not_differentiable(op: str) -> Callable[..., Any]:
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError(
            f"fastmtl.ops.{op} has no derivative: it measures gradients; detach its inputs or its results"
        )

    return backward


_library = torch.library.Library("fastmtl", "DEF")
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(_name, _dispatcher(_name), "CompositeExplicitAutograd")
    _plainly = _with_plain_tensors(_name)
    for _key in _UNUSUAL:
        _library.impl(_name, _plainly, _key)
    torch.library.register_fake(f"fastmtl::{_name}", FAKES[_name], lib=_library)
    if "!" not in _schema:
        torch.library.register_autograd(f"fastmtl::{_name}", _not_differentiable(_name), lib=_library)


def call(op: Any, *arguments: Any) -> Any:
    """Call an operator of this library, past its autograd kernel where nothing asks for a derivative.

    That kernel, which only raises in a backward, is written in Python: for small gradients it takes as long as the op.
    """
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments)):
        return op(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return op(*arguments)
