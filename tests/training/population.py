"""Tasks with known population moments: a batch of per-sample gradients drawn from a chosen distribution.

A linear layer with one input, which is 1 for every sample, has the per-sample gradient dL_k/d(output of sample b): losses that
are inner products of the outputs with given numbers have those numbers as their per-sample gradients.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastmtl import Balancer


@dataclass
class Population:
    """Per-sample gradients g_kb = means_k + the sum over sources s of mixing_ks times common noise of sample b."""

    means: Tensor  # [T, P]
    mixing: Tensor  # [T, sources]; noise is standard normal, of P numbers for each source and sample

    @property
    def signal(self) -> Tensor:
        """S of the population, [T, T]."""
        return self.means @ self.means.T

    @property
    def covariance(self) -> Tensor:
        """C of the population, [T, T]."""
        return self.means.shape[1] * self.mixing @ self.mixing.T

    def draw(self, batch: int, generator: torch.Generator) -> Tensor:
        """[T, B, P] per-sample gradients."""
        shape = (self.mixing.shape[1], batch, self.means.shape[1])
        noise = torch.randn(shape, generator=generator, dtype=self.means.dtype)
        return self.means[:, None] + torch.einsum("ks,sbp->kbp", self.mixing, noise)


class GivenGradients(nn.Module):
    """The layer whose per-sample gradients are given; `step` runs one backward of a balancer."""

    def __init__(self, parameters: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.layer = nn.Linear(1, parameters, bias=False, dtype=dtype)

    def losses(self, views: tuple[Tensor, ...], gradients: Tensor, reduction: str = "mean") -> list[Tensor]:
        """T losses whose value is about 1."""
        totals = [(view * g).sum(1) for view, g in zip(views, gradients, strict=True)]
        return [getattr(total, reduction)() + 1.0 for total in totals]

    def step(self, balancer: Balancer, gradients: Tensor, *, scale: float = 1.0, reduction: str = "mean") -> None:
        """One forward and backward."""
        ones = torch.ones(gradients.shape[1], 1, dtype=gradients.dtype)
        views = balancer.fork(self.layer(ones))
        (scale * balancer(self.losses(views, gradients, reduction))).backward()
