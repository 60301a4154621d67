"""The moments of layers without a fused kernel: the algorithms of all backends, on this backend's products."""

from __future__ import annotations

import functools

from fastmtl.backends.layer_moments import LayerMoments, Primitives


@functools.cache
def composed() -> LayerMoments:
    """Many tasks, whose tiles would not fit the registers, and gradients without elements."""
    from fastmtl.backends.triton import lists, products

    return LayerMoments(Primitives(lists.gram, products.cross_gram, products.sample_gram))
