"""The public functions: the three forms of `grads`, and errors that name the argument."""

import pytest
import torch

from fastmtl import ops


def tensors(*shape, tasks=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(tasks)]


def test_a_matrix_is_its_rows():
    rows = tensors(70)
    matrix = torch.stack(rows)
    assert torch.equal(ops.gram(matrix), ops.gram(rows))
    assert torch.equal(ops.squared_norms(matrix), ops.squared_norms(rows))
    weights = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(ops.weighted_sum(matrix, weights), ops.weighted_sum(rows, weights))


def test_gram_of_lists_is_the_sum_over_the_tensors():
    lists = [[a, b] for a, b in zip(tensors(4, 5), tensors(7), strict=True)]
    flat = torch.stack([torch.cat([t.flatten() for t in task]) for task in lists]).double()
    torch.testing.assert_close(ops.gram(lists).double(), flat @ flat.T, rtol=1e-6, atol=1e-5)


def test_moments_of_lists_add_up_and_every_level_has_its_sum():
    coarse, fine = tensors(4, 5), tensors(4, 7, 2)
    totals, second, samples = ops.sum_moments([[a, b] for a, b in zip(coarse, fine, strict=True)])
    parts = [ops.sum_moments(level) for level in (coarse, fine)]
    for total, part in zip(totals, parts, strict=True):
        assert torch.equal(total, part[0])
    torch.testing.assert_close(second, parts[0][1] + parts[1][1])
    torch.testing.assert_close(samples, parts[0][2] + parts[1][2])


def test_moments_are_those_of_per_sample_gradients():
    """MATH: variance from M and Q equals the sample covariance of g_kb = B c_kb."""
    grads = [g.double() for g in tensors(6, 3, 2)]
    _, second, samples = ops.sum_moments(grads)
    per_sample = 6 * torch.stack(grads).flatten(2)  # [T, B, P]
    centred = per_sample - per_sample.mean(1, keepdim=True)
    covariance = torch.einsum("kbp,jbp->kj", centred, centred) / 5
    torch.testing.assert_close(6 / 5 * (samples - second), covariance)
    torch.testing.assert_close(second, per_sample.mean(1) @ per_sample.mean(1).T)


@pytest.mark.parametrize("nested", [False, True])
def test_weighted_sum_into_one_of_the_gradients(nested):
    grads = tensors(5, 6)
    weights = torch.tensor([0.5, 2.0, -1.0])
    expected = ops.weighted_sum(grads, weights)
    if nested:
        out = [grads[1]]
        assert ops.weighted_sum([[g] for g in grads], weights, out=out)[0] is grads[1]
    else:
        assert ops.weighted_sum(grads, weights, out=grads[1]) is grads[1]
    assert torch.equal(grads[1], expected)


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ([], ValueError, "grads: expected 1 to 64 tasks, got 0"),
        (torch.ones(65, 2), ValueError, "grads: expected 1 to 64 tasks, got 65"),
        (torch.ones(3), ValueError, r"grads: expected a \[T, P\] matrix"),
        (3, TypeError, "grads: expected T tensors"),
        ([torch.ones(2), 1.0], TypeError, r"grads\[1\]: expected tensors"),
        ([torch.ones(2), [torch.ones(2)]], TypeError, "mixture"),
        ([torch.ones(2), torch.ones(3)], ValueError, r"grads\[1\]: expected \[2\]"),
        ([torch.ones(2), torch.ones(2).double()], ValueError, r"grads\[1\]: expected \[2\] torch.float32"),
        ([torch.ones(2, dtype=torch.int32)] * 2, TypeError, r"grads\[0\]: expected one of torch.float32"),
        ([[torch.ones(2)], [torch.ones(2)] * 2], ValueError, r"lists of one length, got \[1, 2\]"),
        ([None, None], ValueError, "at least one gradient"),
        ([[torch.ones(2), torch.ones(2).double()]] * 2, ValueError, "one dtype"),
    ],
)
@pytest.mark.parametrize("op", [ops.gram, ops.squared_norms, ops.sum_moments, ops.sum_norms])
def test_bad_gradients(op, grads, error, message):
    with pytest.raises(error, match=message):
        op(grads)


def test_bad_weights_and_out():
    grads = tensors(4)
    with pytest.raises(TypeError, match="weights: expected a tensor"):
        ops.weighted_sum(grads, [1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match="weights: expected 3 floating-point numbers"):
        ops.weighted_sum(grads, torch.ones(2))
    with pytest.raises(ValueError, match=r"out\[0\]: expected \[4\] torch.float32"):
        ops.weighted_sum(grads, torch.ones(3), out=torch.empty(5))
    with pytest.raises(ValueError, match="out: expected a tensor"):
        ops.weighted_sum(grads, torch.ones(3), out=[torch.empty(4)])


def test_sum_moments_needs_a_batch_dimension():
    with pytest.raises(ValueError, match="batch dimension"):
        ops.sum_moments([torch.ones(()), torch.ones(())])


def test_sum_of_a_level_without_gradients():
    with pytest.raises(ValueError, match="tensor 1"):
        ops.sum_norms([[torch.ones(2), None], [torch.ones(2), None]])
