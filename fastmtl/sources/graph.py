"""Reading the autograd graph: who uses a parameter between the fork and the inputs.

No hooks on modules: the graph of this very forward pass says what happened, also after deepcopy, pickle,
parametrisation or a module called twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
