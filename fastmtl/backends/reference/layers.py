"""Products of gradients that the moments of layers are made of, and those moments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastmtl.backends.contract import present_of
from fastmtl.backends.layer_moments import LayerMoments, Primitives
from fastmtl.backends.reference.lists import gram, zeros_for_missing


def _flat(tensors: Sequence[Tensor | None]) -> Tensor:
    """[T, P], with zeros for those that did not arrive."""
    return torch.stack([tensor.reshape(-1) for tensor in zeros_for_missing(tensors, present_of(tensors)[0])])


def cross_gram(left: Sequence[Tensor | None], right: Sequence[Tensor | None]) -> Tensor:
    """Inner products of tensors of one shape: [len(left), len(right)]."""
    return _flat(left) @ _flat(right).T


def sample_gram(grads: Sequence[Tensor | None], weights: Tensor) -> Tensor:
    """sum_b weights_b <g_kb, g_jb> of T gradients [B, ...]."""
    like = present_of(grads)[0]
    stacked = torch.stack(zeros_for_missing(grads, like)).reshape(len(grads), like.shape[0], math.prod(like.shape[1:]))
    return torch.einsum("kbp,b,jbp->kj", stacked, weights, stacked)


_layers = LayerMoments(Primitives(gram, cross_gram, sample_gram))
linear_moments = _layers.linear_moments
conv_moments = _layers.conv_moments
embedding_moments = _layers.embedding_moments
norm_moments = _layers.norm_moments
