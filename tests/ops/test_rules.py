"""The update of GradNorm's weights as a function: the paper's formulas by hand, and errors that name the argument."""

import math

import pytest
import torch

from fastmtl import ops

EVERYONE = torch.ones(2, dtype=torch.bool)


def losses(*values):
    return [torch.tensor(value) for value in values]


def test_a_step_by_hand():
    """Two tasks, SGD: G = (1, 6), rates (0.5, 1) / 0.75, alpha 1, targets 3.5 * rates; both signs are known."""
    state = ops.gradnorm_state(2)
    state.initial_losses.copy_(torch.tensor([2.0, 3.0]))
    _, message = ops.weigh(losses(1.0, 3.0), state.weights, EVERYONE)
    ops.gradnorm_update(torch.tensor([1.0, 36.0]), message, state, alpha=1.0, lr=0.01, optimizer="sgd")
    moved = torch.tensor([1 + 0.01 * 1.0, 1 - 0.01 * 6.0])  # G_1 = 1 < 2.33, G_2 = 6 > 4.67
    torch.testing.assert_close(state.weights, 2 * moved / moved.sum())
    torch.testing.assert_close(state.rates, torch.tensor([2 / 3, 4 / 3]))
    torch.testing.assert_close(state.norms, torch.tensor([1.0, 6.0]))
    assert state.counters.tolist() == [1, 0]


def test_the_loss_scale_cancels():
    results = []
    for scale in (1.0, 2.0**-3, 2.0**17):
        state = ops.gradnorm_state(2)
        _, message = ops.weigh(losses(1.0, 3.0), state.weights, EVERYONE)
        message = ops.with_scale(message, torch.tensor(scale))
        ops.gradnorm_update(scale**2 * torch.tensor([1.0, 36.0]), message, state, alpha=0.5)
        results.append(state.weights)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_weigh():
    loss, message = ops.weigh(losses(1.0, math.nan), torch.tensor([0.5, 1.5]), torch.tensor([True, False]))
    assert loss == 0.5 and loss.dtype == torch.float32
    assert message[:3].tolist() == [1, 1, 1] and message[4:].tolist() == [0.5, 1.5, 1, 0]


def test_errors():
    state = ops.gradnorm_state(2)
    _, message = ops.weigh(losses(1.0, 3.0), state.weights, EVERYONE)
    with pytest.raises(ValueError, match="optimizer: expected 'adam' or 'sgd', got 'rmsprop'"):
        ops.gradnorm_update(torch.ones(2), message, state, alpha=0.0, optimizer="rmsprop")
    with pytest.raises(ValueError, match=r"squared_norms: expected shape \[2\] for 2 tasks, got \[3\]"):
        ops.gradnorm_update(torch.ones(3), message, state, alpha=0.0)
    with pytest.raises(ValueError, match=r"message: expected shape \[8\]"):
        ops.gradnorm_update(torch.ones(2), message[1:], state, alpha=0.0)
    with pytest.raises(ValueError, match="weights, present: expected"):
        ops.weigh(losses(1.0), state.weights, EVERYONE)
