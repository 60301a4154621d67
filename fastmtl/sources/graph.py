"""Reading the autograd graph: who uses a parameter between the fork and the inputs.

No hooks on modules: the graph of this very forward pass says what happened, also after deepcopy, pickle,
parametrisation or a module called twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

# Nodes that only present a parameter in another form on its way to the operation that uses it.
_FORMS = ("ToCopyBackward0", "TBackward0")


def edges_of(tensors: Iterable[Tensor]) -> list[GradientEdge]:
    """Where the gradients of ``tensors`` enter the graph."""
    return [get_gradient_edge(tensor) for tensor in tensors]


def users(roots: Sequence[GradientEdge], leaves: Sequence[Tensor]) -> list[list[tuple[Node, int]]]:
    """For each leaf the operations behind ``roots`` that use it, with the position of the input that it is.

    Casts (autocast) and transpositions on the way are looked through. An empty list: the leaf is not part of the graph.
    """
    found: list[list[tuple[Node, int]]] = [[] for _ in leaves]
    forms = {get_gradient_edge(leaf).node: index for index, leaf in enumerate(leaves)}
    parents: dict[Node, list[tuple[Node, int]]] = {}
    stack = [edge.node for edge in roots]
    seen = set(stack)
    while stack:
        node = stack.pop()
        for position, (following, _) in enumerate(node.next_functions):
            if following is None:
                continue
            if following in forms or following.name() in _FORMS:
                parents.setdefault(following, []).append((node, position))
            if following not in seen:
                seen.add(following)
                stack.append(following)
    pending = list(forms.items())
    while pending:
        node, index = pending.pop()
        for user, position in parents.get(node, []):
            if user.name() in _FORMS and user in parents:
                pending.append((user, index))
            else:
                found[index].append((user, position))
    return found


def kept_tensor(node: Node, name: str) -> Tensor | None:
    """A tensor that ``node`` keeps for its backward; None where hooks (checkpointing, offloading) keep it.

    Not unpacked, since checkpointing lets a tensor be unpacked once only.
    """
    saved = getattr(node, f"_raw_saved_{name}")
    plain = getattr(saved, "unpack_hook", saved) is None and isinstance(saved.data, Tensor)
    return saved.data.detach() if plain else None


def nodes_between(roots: Sequence[GradientEdge], places: Sequence[Node]) -> set[Node]:
    """The nodes on the ways from ``roots`` to any of ``places``, these left out."""
    users_of: dict[Node, list[Node]] = {}
    stack = [edge.node for edge in roots]
    seen = set(stack)
    while stack:
        node = stack.pop()
        for following, _ in node.next_functions:
            if following is None:
                continue
            users_of.setdefault(following, []).append(node)
            if following not in seen:
                seen.add(following)
                stack.append(following)
    above: set[Node] = set()
    stack = list(places)
    while stack:
        for user in users_of.get(stack.pop(), []):
            if user not in above:
                above.add(user)
                stack.append(user)
    return above - set(places)


BATCH_NORMS = ("NativeBatchNormBackward0", "CudnnBatchNormBackward0", "MiopenBatchNormBackward0")


def mixes_samples(node: Any) -> bool:
    """Whether ``node`` is batch norm in training; instance norm, which is one over a batch of 1, is not."""
    if node.name() not in BATCH_NORMS or not getattr(node, "_saved_training", True):
        return False
    inputs = kept_tensor(node, "input")
    return inputs is None or inputs.shape[0] != 1


def is_bias_of(product: Any, bias: Tensor) -> bool:
    """Whether a linear layer's bias is one number for each output of the node of its matrix product."""
    outputs = product._saved_mat2_sym_sizes[-1]
    return bias.numel() == outputs == bias.shape[-1:].numel()
