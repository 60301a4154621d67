"""The moments of layers without a fused kernel: the algorithms of all backends, on this backend's products."""

from __future__ import annotations

from fastmtl.backends.layer_moments import Costs, LayerMoments, Primitives
from fastmtl.backends.triton.lists import gram
from fastmtl.backends.triton.products import cross_gram, sample_gram

# Of an H200, whose float32 products take some 45 fs a multiply-add and whose memory some 1 ps a number that is read; 5 us a
# call. Many rows: a call costs as much as the products that it would save.
COSTS = Costs(read=22, formed=66, call=110_000_000, least_rows=4096)
PRIMITIVES = Primitives(gram, cross_gram, sample_gram, COSTS)
# For many tasks, whose tiles would not fit the registers, and gradients without elements.
COMPOSED = LayerMoments(PRIMITIVES)
