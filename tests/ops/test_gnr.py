"""The update of the GNR weights: its steps by hand, the statistics by simulation, and errors that name the argument."""

import math

import pytest
import torch

from fastmtl import ops

EVERYONE = torch.ones(2, dtype=torch.bool)
M = torch.tensor([[1.0, 0.0], [0.0, 4.0]])
Q = torch.tensor([[3.0, 0.0], [0.0, 6.0]])  # batch 5: C = 2.5, S = (0.5, 3.5)


def message_for(weights, scale=1.0, present=EVERYONE, losses=(1.0, 1.0)):
    _, message = ops.weigh([torch.tensor(loss) for loss in losses], weights, present)
    return ops.with_scale(message, torch.tensor(scale))


def arrived(matrix, weights, scale=1.0):
    """The moments of gradients of scale * w_k L_k."""
    return (matrix.double() * scale**2 * weights.double()[:, None] * weights.double()).to(matrix.dtype)


def update(state, second=M, samples=Q, *, scale=1.0, present=EVERYONE, losses=(1.0, 1.0), batch=5, **options):
    """A step from the moments of the unweighted losses."""
    w = state.weights.clone()
    samples = None if samples is None else arrived(samples, w, scale)
    message = message_for(w, scale, present, losses)
    ops.gnr_update(arrived(second, w, scale), samples, message, state, batch=batch, **options)


def copies(state):
    return [tensor.clone() for tensor in state]


def assert_same(state, before, but=()):
    for name, now, then in zip(state._fields, state, before, strict=True):
        if name not in but:
            torch.testing.assert_close(now, then, rtol=0, atol=0, equal_nan=True, msg=name)


def ratio_of(weights):
    return float(weights[0].double() / weights[1].double())


def best_ratio(objective, effective, floor):
    """w1 / w2 of two uncorrelated tasks: y = (w1 / w2)^2 makes (c1 + M22 / y) / num1 and (c2 + y M11) / num2 equal."""
    signals, c = (0.5, 3.5), 2.5 / effective
    second = [signal + c for signal in signals]
    plain = (c, c) if objective == "relative" else signals
    first, other = (max(p, floor * m) for p, m in zip(plain, second, strict=True))
    a, b, d = second[0] / other, c / other - c / first, -second[1] / first
    return math.sqrt((-b + math.sqrt(b * b - 4 * a * d)) / (2 * a))


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize(("objective", "floor"), [("relative", 0.05), ("maxmin", 0.1)])
def test_the_solution_for_two_tasks(backend, objective, floor, accumulation):
    state = ops.gnr_state(2)
    update(state, objective=objective, accumulation=accumulation, step=1.0)
    assert ratio_of(state.weights) == pytest.approx(best_ratio(objective, 5 * accumulation, floor), rel=1e-4)
    assert state.samples.item() == 5 * accumulation
    torch.testing.assert_close(state.moments, torch.stack([M, Q]))
    # S and C know the micro-batch alone.
    expected = torch.stack([torch.diag(torch.tensor([0.5, 3.5])), 2.5 * torch.eye(2), M]).double()
    torch.testing.assert_close(state.averages / state.shares, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("objective", ["relative", "maxmin"])
def test_the_floor(backend, objective):
    """At 0.6 it holds for one task at least: C / B = 0.5 of M = (1, 4), and S = 0.5 of 1."""
    state = ops.gnr_state(2)
    update(state, objective=objective, step=1.0, floor=0.6)
    expected = best_ratio(objective, 5, 0.6)
    assert ratio_of(state.weights) == pytest.approx(expected, rel=1e-4)
    assert abs(expected / best_ratio(objective, 5, 0.01) - 1) > 0.01


def test_the_step_is_a_blend_of_logarithms(backend):
    """Without noise of their own, two tasks are best at w1 / w2 = sqrt(M22 / M11) = 2."""
    state = ops.gnr_state(2)
    state.weights.copy_(torch.tensor([0.5, 1.5]))
    update(state, samples=None, objective="intertask", step=0.25)
    expected = (1 / 3) ** 0.75 * 2**0.25
    assert ratio_of(state.weights) == pytest.approx(expected, rel=1e-4)
    assert state.weights.sum().item() == pytest.approx(2, rel=1e-6)
    for _ in range(100):
        update(state, samples=None, objective="intertask", step=0.25)
    assert ratio_of(state.weights) == pytest.approx(2, rel=1e-4)


def test_averages_are_without_the_bias_of_their_start(backend):
    state = ops.gnr_state(2)
    for n in range(1, 5):
        update(state, objective="none", decay=0.9)
        torch.testing.assert_close(state.averages[2] / state.shares, M.double(), rtol=1e-12, atol=0)
        torch.testing.assert_close(state.shares, torch.full((2, 2), 1 - 0.9**n, dtype=torch.float64))
    state = ops.gnr_state(2)
    update(state, objective="none", decay=0.75)
    update(state, 2 * M, 2 * Q, objective="none", decay=0.75)
    expected = (0.75 * 0.25 + 0.25 * 2) / (1 - 0.75**2) * M.double()
    torch.testing.assert_close(state.averages[2] / state.shares, expected)
    torch.testing.assert_close(state.moments, 2 * torch.stack([M, Q]))


def test_none_measures_only(backend):
    state = ops.gnr_state(2)
    update(state, objective="none")
    assert state.weights.tolist() == [1, 1] and state.counters.tolist() == [1, 0]
    update(state, samples=None, objective="none")
    assert state.averages[:2].isnan().all() and state.moments[1].isnan().all()
    torch.testing.assert_close(state.averages[2] / state.shares, M.double())
    update(state, objective="relative")  # unknown stays unknown, and the weights stay
    assert state.weights.tolist() == [1, 1] and state.averages[:2].isnan().all()


def test_one_sample_has_no_variance(backend):
    state = ops.gnr_state(2)
    update(state, M, M, batch=1, objective="intertask", step=1.0)
    assert state.averages[:2].isnan().all() and state.moments[1].isnan().all()
    assert ratio_of(state.weights) == pytest.approx(2, rel=1e-4)


def test_the_loss_scale_cancels(backend):
    results = []
    for scale in (1.0, 2.0**-3, -(2.0**12)):
        state = ops.gnr_state(2)
        state.weights.copy_(torch.tensor([0.7, 1.3]))
        update(state, scale=scale)
        results.append(state)
    for other in results[1:]:
        assert_same(other, results[0])


def test_weights_of_the_message_cancel(backend):
    """The moments belong to the weights that the loss was formed with, not to those of the state."""
    states = [ops.gnr_state(2) for _ in range(2)]
    for state, used in zip(states, (torch.ones(2), torch.tensor([0.25, 4.0])), strict=True):
        ops.gnr_update(arrived(M, used), arrived(Q, used), message_for(used), state, batch=5)
    assert_same(states[1], states[0])


def test_summed_losses(backend):
    states = [ops.gnr_state(2) for _ in range(2)]
    update(states[0])
    update(states[1], 25 * M, 25 * Q, loss_sum=True)
    assert_same(states[1], states[0])


def three_tasks(present=(True, True, True)):
    correlated = torch.tensor([[1.0, 0.3, -0.4], [0.3, 4.0, 1.0], [-0.4, 1.0, 9.0]])
    return {"second": correlated, "samples": correlated + 2 * torch.eye(3), "present": torch.tensor(present)}


def test_an_absent_task_keeps_everything(backend):
    state = ops.gnr_state(3)
    state.weights.copy_(torch.tensor([0.5, 1.0, 1.5]))
    update(state, **three_tasks(), losses=(1.0,) * 3, objective="none")
    before = copies(state)
    present = three_tasks((True, False, True))
    present["second"][1] = math.nan
    update(state, **present, losses=(1.0, math.nan, 1.0), step=1.0)
    others = torch.tensor([0, 2])
    for now, then in zip(state[1:4], before[1:4], strict=True):
        torch.testing.assert_close(now[..., 1, :], then[..., 1, :], rtol=0, atol=0)
        torch.testing.assert_close(now[..., :, 1], then[..., :, 1], rtol=0, atol=0)
    assert (state.shares[others][:, others] > before[3][others][:, others]).all()
    assert state.weights[1] == 1.0
    assert state.weights[others].sum().item() == pytest.approx(2, rel=1e-6)
    assert state.weights[0] != 0.5
    # Two of three tasks: as if there were no third.
    two = ops.gnr_state(2)
    values = three_tasks()
    for _ in range(2):
        two.weights.fill_(1)
        pair = [values[key][others][:, others] for key in ("second", "samples")]
        update(two, *pair, step=1.0)
    assert ratio_of(state.weights[others]) == pytest.approx(ratio_of(two.weights), rel=1e-5)


def test_a_task_without_gradient_is_counted_and_left_out(backend):
    state = ops.gnr_state(2)
    w = state.weights.clone()
    message = message_for(w)
    message[2 + 4] = 2.0
    ops.gnr_update(M, Q, message, state, batch=5, step=1.0)
    assert state.task_counters.tolist() == [[0, 0], [1, 0]]
    assert state.shares.tolist() == [[0, 0], [0, pytest.approx(0.05)]]
    assert state.weights.tolist() == [1, 1]


def test_a_zero_gradient_is_counted_and_keeps_its_weight(backend):
    state = ops.gnr_state(3)
    state.weights.copy_(torch.tensor([0.5, 1.0, 1.5]))
    values = three_tasks()
    for key in ("second", "samples"):
        values[key][1] = values[key][:, 1] = 0
    update(state, **values, losses=(1.0,) * 3, step=1.0)
    assert state.task_counters.tolist() == [[0, 1, 0], [0, 0, 0]]
    assert state.weights[1] == 1.0 and state.weights[0] != 0.5
    assert state.weights.sum().item() == pytest.approx(3, rel=1e-6)


@pytest.mark.parametrize("variance", [8e-7, -8e-7])
def test_the_variance_of_rounding_is_none(backend, variance):
    """C_11 below 1e-6 Q_11 counts as 0, and so does C_12; else C_12 would be common noise of both.

    S = I, C_22 / B = 100: y = (w1 / w2)^2 makes (101 / y) / 0.05 and (100 + y) / 100 equal.
    """
    C = torch.tensor([[variance, 0.02], [0.02, 500.0]], dtype=torch.float64)
    second = torch.eye(2, dtype=torch.float64) + C / 5
    state = ops.gnr_state(2)
    update(state, second, second + 4 / 5 * C, step=1.0)
    y = -50 + math.sqrt(50**2 + 202000)
    assert ratio_of(state.weights) == pytest.approx(math.sqrt(y), rel=5e-5)


def test_weights_stay_positive_in_float32(backend):
    """The best ratio would be 1e41."""
    state = ops.gnr_state(2)
    update(state, torch.diag(torch.tensor([1e-44, 1e38], dtype=torch.float64)), None, objective="intertask", step=1.0)
    assert state.weights.tolist() == [2, torch.finfo(torch.float32).tiny]


@pytest.mark.parametrize("bad", [math.nan, -math.inf, 1e39])  # the last is beyond float32
@pytest.mark.parametrize("what", ["M", "Q", "M-pair", "loss", "scale"])
def test_what_is_not_finite_is_refused(backend, what, bad):
    state = ops.gnr_state(2)
    update(state)
    before = copies(state)
    w = state.weights.clone()
    second, samples, message = arrived(M.double(), w), arrived(Q.double(), w), message_for(w)
    moments = {"M": (second, (0, 0)), "Q": (samples, (1, 1)), "M-pair": (second, (0, 1))}
    tensor, index = (moments | {"loss": (message, (2,)), "scale": (message, (1,))})[what]
    tensor[index] = torch.tensor(bad, dtype=torch.float64).to(tensor.dtype)
    ops.gnr_update(second, samples, message, state, batch=5)
    assert state.counters.tolist() == [1, 1]
    assert_same(state, before, but=["counters"])


@pytest.mark.parametrize("index", [0, 1])
def test_what_was_not_measured_changes_nothing(backend, index):
    state = ops.gnr_state(2)
    update(state)
    before = copies(state)
    message = message_for(state.weights)
    message[index] = 0
    ops.gnr_update(M * math.nan, Q, message, state, batch=5)
    assert_same(state, before)


def correlated_gradients(generator, tasks=3, size=12):
    mean = torch.randn(tasks, size, generator=generator, dtype=torch.float64)
    mix = torch.randn(tasks, tasks, generator=generator, dtype=torch.float64)  # tasks see the same samples

    def batches(count, batch):
        noise = torch.randn(count, tasks, batch, size, generator=generator, dtype=torch.float64)
        return mean[:, None] + torch.einsum("kj,njbp->nkbp", mix, noise)

    return mean @ mean.T, size * mix @ mix.T, mean, batches


def test_the_noise_is_that_of_simulated_updates():
    S, C, mean, batches = correlated_gradients(torch.Generator().manual_seed(1))
    weights = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    count, batch = 40000, 4
    updates = torch.einsum("k,nkp->np", weights, batches(count, batch).mean(2))
    deviations = (updates[:, None] - weights[:, None] * mean).square().sum(2)  # [count, T]
    noise, error = deviations.mean(0), deviations.std(0) / math.sqrt(count)
    gnr, alone = ops.gradient_noise_ratio(S, C, weights, batch)
    predicted = weights.square() * S.diagonal() / gnr.square()
    assert ((predicted - noise).abs() < 4 * error).all()
    assert (error < 0.01 * noise).all()  # the test can tell
    torch.testing.assert_close(alone, (S.diagonal() / (C.diagonal() / batch)).sqrt())


def test_the_covariance_is_without_bias():
    S, C, _, batches = correlated_gradients(torch.Generator().manual_seed(2))
    count, batch = 20000, 3
    samples = batches(count, batch)
    sums = samples.mean(2)
    second = torch.einsum("nkp,njp->nkj", sums, sums)
    mean_squares = torch.einsum("nkbp,njbp->nkj", samples, samples) / batch
    estimates = [ops.covariance(a, b, batch) for a, b in zip(second, mean_squares, strict=True)]
    for truth, estimate in zip((C, S), map(torch.stack, zip(*estimates, strict=True)), strict=True):
        error = estimate.std(0) / math.sqrt(count)
        assert ((estimate.mean(0) - truth).abs() < 4 * error).all()
        assert (error < 0.05 * truth.diagonal().max()).all()


def test_ratios_without_signal_or_noise():
    S = torch.diag(torch.tensor([1.0, 0.0, -2.0]))
    gnr, alone = ops.gradient_noise_ratio(S, torch.diag(torch.tensor([0.0, 1.0, 1.0])), torch.ones(3), 4)
    assert alone.tolist() == [math.inf, 0, 0] and gnr[1:].tolist() == [0, 0]
    gnr, alone = ops.gradient_noise_ratio(torch.eye(1), torch.zeros(1, 1), torch.ones(1), 1)
    assert gnr.tolist() == alone.tolist() == [math.inf]
    assert ops.gradient_noise_ratio(torch.zeros(2, 2), torch.zeros(2, 2), torch.ones(2), 1)[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"objective": "best"}, ValueError, "objective: expected one of relative, maxmin, intertask, none, got 'best'"),
        ({"M": torch.ones(3, 3)}, ValueError, r"M: expected shape \[2, 2\] for 2 tasks, got \[3, 3\]"),
        ({"M": torch.ones(2)}, ValueError, r"M: expected a \[T, T\] matrix, got \[2\]"),
        ({"M": torch.ones(2, 2).half()}, TypeError, "M: expected float32 or float64, got torch.float16"),
        (
            {"Q": torch.ones(2, 2).double()},
            ValueError,
            r"Q: expected \[2, 2\] torch.float32, got \[2, 2\] torch.float64",
        ),
        ({"Q": None}, ValueError, "Q: objective 'relative' needs per-sample moments, got None"),
        ({"batch": 1, "objective": "maxmin"}, ValueError, "batch: .* variance needs at least two samples, got 1"),
        ({"batch": 0}, ValueError, "batch: expected at least 1, got 0"),
        ({"batch": 2.0}, TypeError, "batch: expected an int, got 2.0"),
        ({"accumulation": 0}, ValueError, "accumulation: expected at least 1, got 0"),
        ({"message": torch.ones(7)}, ValueError, r"message: expected shape \[8\] for 2 tasks, got \[7\]"),
        ({"decay": 1.0}, ValueError, r"decay: expected a number in \[0, 1\), got 1.0"),
        ({"step": 0.0}, ValueError, r"step: expected a number in \(0, 1\], got 0.0"),
        ({"floor": 0.0}, ValueError, r"floor: expected a number in \(0, 1\], got 0.0"),
        ({"floor": math.nan}, ValueError, "floor: expected a number .* got nan"),
    ],
)
def test_errors(options, error, message):
    state = ops.gnr_state(2)
    before = copies(state)
    arguments = {"M": M, "Q": Q, "message": message_for(state.weights), "batch": 5} | options
    with pytest.raises(error, match=message):
        ops.gnr_update(arguments.pop("M"), arguments.pop("Q"), arguments.pop("message"), state, **arguments)
    assert_same(state, before)


def test_errors_of_the_statistics():
    with pytest.raises(ValueError, match=r"batch: expected at least 2 \(variance needs at least two samples\), got 1"):
        ops.covariance(M, Q, 1)
    with pytest.raises(ValueError, match=r"Q: expected \[2, 2\] torch.float32, got \[3, 3\]"):
        ops.covariance(M, torch.ones(3, 3), 2)
    with pytest.raises(ValueError, match=r"weights: expected shape \[2\], got \[3\]"):
        ops.gradient_noise_ratio(M, Q, torch.ones(3), 2)
