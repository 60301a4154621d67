"""Losses averaged over valid pixels, of which samples have different numbers: what is exact, what is biased, what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from fastmtl import GradientStatistics, ops
from tests.training.population import GivenGradients

BATCH, BATCHES, PARAMETERS = 4, 4000, 12
COUNTS = torch.tensor([1.0, 9.0])  # valid pixels of a sample, equally likely
MEAN_COUNT = float(COUNTS.mean())


def pixel_sums(generator: torch.Generator, mean: Tensor) -> tuple[Tensor, Tensor]:
    """For each sample of each batch the sum of its pixels' gradients, [batches, B, P], and the pixels' number."""
    counts = COUNTS[torch.randint(2, (BATCHES, BATCH), generator=generator)]
    noise = torch.randn(BATCHES, BATCH, PARAMETERS, generator=generator) * counts.sqrt()[..., None]
    return counts[..., None] * mean + noise, counts


def signals(contributions: Tensor) -> Tensor:
    """The estimate of ||grad L||^2 from each batch, of what the samples add to the gradient."""
    estimates = []
    for batch in contributions:
        _, M, Q = ops.sum_moments([batch])
        estimates.append(ops.covariance(M, Q, BATCH)[1][0, 0])
    return torch.stack(estimates).double()


def test_a_fixed_divisor_is_unbiased_and_the_ratio_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(PARAMETERS, generator=generator)
    sums, counts = pixel_sums(generator, mean)
    truth = float(mean.double().square().sum())

    fixed = signals(sums / (BATCH * MEAN_COUNT))
    assert abs(fixed.mean() - truth) < 4 * fixed.std() / BATCHES**0.5
    # A mean over the batch's valid pixels: the different numbers count as noise that the mean does not have.
    ratio = signals(sums / counts.sum(1)[:, None, None])
    assert ratio.mean() < truth - 20 * ratio.std() / BATCHES**0.5


def test_moments_of_a_mean_over_valid_pixels_are_exact(backend: str) -> None:
    """M and Q are those of what each sample adds to the gradient, whatever its share."""
    sums, counts = pixel_sums(torch.Generator().manual_seed(1), torch.ones(PARAMETERS))
    contributions = torch.stack([sums[0], sums[1].flip(0)]) / counts[0].sum()
    model = GivenGradients(PARAMETERS)
    balancer = GradientStatistics(2, source=model.layer)
    model.step(balancer, contributions, reduction="sum")  # the losses are sums of the samples' contributions
    total = contributions.sum(1).double()
    M, Q = balancer.moments
    torch.testing.assert_close(M.double(), total @ total.T, rtol=1e-5, atol=1e-6)
    samples = BATCH * torch.einsum("kbp,jbp->kj", contributions.double(), contributions.double())
    torch.testing.assert_close(Q.double(), samples, rtol=1e-5, atol=1e-6)
