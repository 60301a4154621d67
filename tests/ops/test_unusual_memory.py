"""Tensors whose memory does not hold their values as they are, and what the ops leave behind for autograd to see."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fastmtl import ops

GRADS = [torch.randn(4, 6, generator=torch.Generator().manual_seed(k)) for k in range(3)]
WEIGHTS = torch.tensor([1.0, 2.0, 3.0])
INDICES = torch.tensor([[0, 1], [1, 1], [2, 0], [1, 2]])
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "negated when read": lambda grad: torch._neg_view(-grad),
    "sparse": lambda grad: grad.to_sparse(),
    "zeros without memory": lambda grad: torch._efficientzerotensor(grad.shape),
}
OPS: dict[str, Callable[[Sequence[Tensor | None]], Any]] = {
    "sum_moments": ops.sum_moments,
    "sum_norms": ops.sum_norms,
    "gram": ops.gram,
    "squared_norms": ops.squared_norms,
    "weighted_sum": lambda grads: ops.weighted_sum(grads, WEIGHTS),
    "linear_moments": lambda grads: ops.linear_moments(GRADS[0], grads),
    "conv_moments": lambda grads: ops.conv_moments(
        GRADS[0][:, None], [grad if grad is None else grad.unsqueeze(1) for grad in grads], (1,)
    ),
    "embedding_moments": lambda grads: ops.embedding_moments(
        INDICES, [grad if grad is None else grad.unsqueeze(1).expand(4, 2, 6) for grad in grads]
    ),
    "norm_moments": lambda grads: ops.norm_moments(GRADS[0], grads, (1,)),
}


# A sparse gradient cannot be given the shape that these two want without making it dense.
@pytest.mark.parametrize(
    ("op", "kind"),
    [(op, kind) for op in OPS for kind in KINDS if kind != "sparse" or op not in ("conv_moments", "embedding_moments")],
)
def test_read_as_what_they_are(op: str, kind: str, backend: str) -> None:
    unusual = KINDS[kind](GRADS[1])
    plain = torch.zeros_like(GRADS[1]) if kind.startswith("zeros") else GRADS[1]
    for missing in (False, True):
        others = [GRADS[0], None if missing else GRADS[2]]
        got, expected = (OPS[op]([others[0], grad, others[1]]) for grad in (unusual, plain))
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_out_is_seen_to_change() -> None:
    """Autograd knows that what it kept was overwritten."""
    leaf = torch.zeros(4, 6, requires_grad=True)
    kept = leaf.exp()
    ops.weighted_sum(GRADS, WEIGHTS, out=kept.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()


@pytest.mark.parametrize("what", ["grads", "weights", "out"])
def test_out_has_no_derivative(what: str) -> None:
    arguments = {"grads": GRADS[0].clone(), "weights": WEIGHTS.clone(), "out": torch.empty(4, 6)}
    arguments[what].requires_grad_()
    before = arguments["out"].detach().clone()
    with pytest.raises(RuntimeError, match="out: expected .* do not require grad"):
        ops.weighted_sum([arguments["grads"], *GRADS[1:]], arguments["weights"], out=arguments["out"])
    torch.testing.assert_close(arguments["out"].detach(), before, rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        ops.weighted_sum([arguments["grads"], *GRADS[1:]], arguments["weights"], out=arguments["out"])


def test_weights_are_seen_to_change(backend: str) -> None:
    state, scale = ops.gradnorm_state(2), torch.ones(2, requires_grad=True)
    kept = (scale * state.weights).sum()
    losses = [torch.tensor(1.0), torch.tensor(2.0)]
    _, message = torch.ops.fastmtl.weigh(losses, state.weights, torch.ones(2, dtype=torch.bool))
    ops.gradnorm_update(torch.tensor([1.0, 4.0]), ops.with_scale(message, torch.tensor(1.0)), state, alpha=0.5, lr=0.1)
    assert state.weights.tolist() != [1.0, 1.0]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_autocast_does_not_round(backend: str) -> None:
    expected = [OPS[op](GRADS) for op in OPS]
    with torch.autocast("cpu", torch.bfloat16):
        got = [OPS[op](GRADS) for op in OPS]
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("way", ["auto", "pairs", "form"])
def test_no_input_features(way: str, backend: str) -> None:
    """What is left are the moments of the bias."""
    grads = [torch.ones(4, 3), 2 * torch.ones(4, 3)]
    M, Q = ops.linear_moments(torch.zeros(4, 0), grads, way=way)
    expected = torch.tensor([[48.0, 96.0], [96.0, 192.0]])
    torch.testing.assert_close((M, Q), (expected, expected), rtol=0, atol=0)
    M, _ = ops.conv_moments(torch.zeros(2, 0, 5), [torch.ones(2, 3, 5)], (1,), way=way)
    assert M.tolist() == [[300.0]]


@pytest.mark.parametrize("way", ["auto", "pairs", "form"])
@pytest.mark.parametrize("positions", [1, 3])
def test_padding_gets_no_gradient(positions: int, way: str, backend: str) -> None:
    """Whatever arrives there, as in torch."""
    indices = torch.randint(1, 4, (4, positions), generator=torch.Generator().manual_seed(0))
    indices[1, 0] = 0
    plain = [torch.randn(4, positions, 5) for _ in range(2)]
    for grad in plain:
        grad[1, 0] = 0.0
    spoilt = [grad.clone() for grad in plain]
    spoilt[0][1, 0] = torch.inf
    got, expected = (ops.embedding_moments(indices, grads, padding_idx=0, way=way) for grads in (spoilt, plain))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_a_tensor_without_gradients(backend: str) -> None:
    lists = [[GRADS[0], None], [GRADS[1], None]]
    with pytest.raises(ValueError, match="grads: expected at least one gradient of tensor 1, got none"):
        ops.weighted_sum(lists, WEIGHTS[:2])


def test_nothing_is_written_to_negated_memory(backend: str) -> None:
    place = torch.full((4, 6), 5.0)
    with pytest.raises(ValueError, match="expected tensors to write to that hold their values"):
        ops.weighted_sum(GRADS, WEIGHTS, out=torch._neg_view(place))
    assert place.eq(5.0).all()
    state = ops.gradnorm_state(2)
    _, message = torch.ops.fastmtl.weigh(
        [torch.ones(()), torch.ones(())], state.weights, torch.ones(2, dtype=torch.bool)
    )
    with pytest.raises(ValueError, match="expected tensors to write to that hold their values"):
        ops.gradnorm_update(
            torch.ones(2), message, state._replace(weights=torch._neg_view(state.weights)), alpha=0.0, lr=0.1
        )
    assert state.weights.tolist() == [1.0, 1.0] and state.counters.tolist() == [0, 0]


@pytest.mark.parametrize("grad", [False, True])
def test_out_compiles(grad: bool) -> None:
    out = torch.empty(4, 6)
    compiled = torch.compile(
        lambda *grads: ops.weighted_sum(grads, WEIGHTS, out=out), fullgraph=True, backend="aot_eager"
    )
    with torch.set_grad_enabled(grad):
        compiled(*GRADS)
    torch.testing.assert_close(out, ops.weighted_sum(GRADS, WEIGHTS), rtol=0, atol=0)
