"""The moments of layers without a fused kernel: the algorithms of all backends, on this backend's products."""

from __future__ import annotations

from fastmtl.backends.layer_moments import LayerMoments, Primitives
from fastmtl.backends.triton.lists import gram
from fastmtl.backends.triton.products import cross_gram, sample_gram

PRIMITIVES = Primitives(gram, cross_gram, sample_gram)
# For many tasks, whose tiles would not fit the registers, and gradients without elements.
COMPOSED = LayerMoments(PRIMITIVES)
