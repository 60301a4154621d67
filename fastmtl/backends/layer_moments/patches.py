"""Patches of convolutions: what of an image lies under the kernel at each of its places; and their inner products.

Everything for any number of spatial dimensions. Images are [b, channels, *size].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Geometry:
    """Where the kernel goes: one number for each spatial dimension, and (before, after) of the padding."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @property
    def area(self) -> int:
        """Elements of the kernel."""
        return math.prod(self.kernel)

    @property
    def is_pointwise(self) -> bool:
        """Whether patches are the pixels themselves."""
        return self.area == 1 and all(step == 1 for step in self.stride) and not any(map(any, self.padding))

    def padded(self, size: Sequence[int]) -> tuple[int, ...]:
        """Size of a padded image."""
        return tuple(extent + sum(pads) for extent, pads in zip(size, self.padding, strict=True))

    def places(self, size: Sequence[int]) -> tuple[int, ...]:
        """How often the kernel fits into images of ``size``, in each dimension."""
        return tuple(
            max(0, (extent - dilation * (kernel - 1) - 1) // stride + 1)
            for extent, kernel, dilation, stride in zip(
                self.padded(size), self.kernel, self.dilation, self.stride, strict=True
            )
        )

    def pads(self) -> list[int]:
        """The padding as `torch.nn.functional.pad` wants it: the last dimension first."""
        return [pad for pads in reversed(self.padding) for pad in pads]

    def without_padding(self) -> Geometry:
        """For images that are padded already."""
        return Geometry(self.kernel, self.stride, ((0, 0),) * len(self.kernel), self.dilation)


def pad(images: Tensor, geometry: Geometry, mode: str) -> Tensor:
    """Images with their padding; ``mode`` as of `torch.nn.Conv2d`."""
    if not any(map(any, geometry.padding)):
        return images
    return F.pad(images, geometry.pads(), mode="constant" if mode == "zeros" else mode)


def _windows(padded: Tensor, geometry: Geometry, groups: int, places: Sequence[int]) -> Tensor:
    """[b, groups, channels / groups, *kernel, *places], a view."""
    sample, channel, *strides = padded.stride()
    moved = [stride * step for stride, step in zip(strides, geometry.stride, strict=True)]
    within = [stride * step for stride, step in zip(strides, geometry.dilation, strict=True)]
    batch, channels = padded.shape[:2]
    return padded.as_strided(
        (batch, groups, channels // groups, *geometry.kernel, *places),
        (sample, channel * (channels // groups), channel, *within, *moved),
        padded.storage_offset(),
    )


def patches(padded: Tensor, geometry: Geometry, groups: int, places: Sequence[int]) -> Tensor:
    """[b, groups, places, channels / groups * kernel elements] of padded images: views where possible, else copies.

    ``places`` limits the places of the kernel. Within a patch channels come first.
    """
    windows = _windows(padded, geometry, groups, places)
    batch, channels = padded.shape[:2]
    return windows.reshape(batch, groups, channels // groups * geometry.area, math.prod(places)).transpose(-1, -2)


def joined_patches(padded: Tensor, geometry: Geometry, groups: int, places: Sequence[int]) -> Tensor:
    """[groups, b * places, channels / groups * kernel elements]: those of all images in one copy."""
    windows = _windows(padded, geometry, groups, places).movedim(0, 2 + len(places))
    batch, channels = padded.shape[:2]
    return windows.reshape(groups, channels // groups * geometry.area, batch * math.prod(places)).transpose(-1, -2)


def pixels(images: Tensor, groups: int) -> Tensor:
    """[b, channels, *size] as [b, groups, pixels, channels / groups]."""
    grouped = images.reshape(images.shape[0], groups, images.shape[1] // groups, math.prod(images.shape[2:]))
    return grouped.transpose(-1, -2)


def patch_gram(left: Tensor, right: Tensor, size: Sequence[int], geometry: Geometry) -> Tensor:
    """Inner products of all patches of some images with all patches of others, from the products of their pixels.

    Added up over the kernel's offsets, which both pixels of a pair move by: kernel-size times fewer multiply-adds than
    with patches.

    Args:
        left, right: [..., images * pixels, channels] of images of ``size``; what is padded is zero.

    Returns:
        [..., left images * places, right images * places].
    """
    places, padded = geometry.places(size), geometry.padded(size)
    lead, area, rank = left.shape[:-2], math.prod(size), len(size)
    counts = left.shape[-2] // area, right.shape[-2] // area
    gram = (left @ right.transpose(-1, -2)).reshape(-1, counts[0], *size, counts[1], *size)
    gram = F.pad(gram, [*geometry.pads(), 0, 0, *geometry.pads()])
    gram = gram.view(-1, *(count * math.prod(padded) for count in counts))
    for dimension in range(rank):
        shift = geometry.dilation[dimension] * math.prod(padded[dimension + 1 :])
        gram = _add_shifted(gram, shift, geometry.kernel[dimension])
    gram = gram.view(-1, counts[0], *padded, counts[1], *padded)
    for dimension, (count, step) in enumerate(zip(places, geometry.stride, strict=True)):
        for axis in (2 + dimension, 3 + rank + dimension):
            gram = gram.unfold(axis, 1, step).squeeze(-1).narrow(axis, 0, count)
    return gram.reshape(*lead, *(count * math.prod(places) for count in counts))


def _add_shifted(gram: Tensor, shift: int, times: int) -> Tensor:
    """sum_i gram[s + i * shift, s' + i * shift]; what lies beyond the end counts as zero."""
    result = gram.clone() if times > 1 else gram
    for i in range(1, times):
        rows, columns = (extent - i * shift for extent in gram.shape[1:])
        moved = gram.narrow(1, i * shift, rows).narrow(2, i * shift, columns)
        result.narrow(1, 0, rows).narrow(2, 0, columns).add_(moved)
    return result


def patch_gram_memory(size: Sequence[int], geometry: Geometry) -> int:
    """Numbers that `patch_gram` holds for each pair of images."""
    return 3 * math.prod(geometry.padded(size)) ** 2 + math.prod(geometry.places(size)) ** 2


# Shifting and adding one number of the Gram matrix takes as long as this many multiply-adds: measured, see `cost`.
_SHIFT_COST = 20


def patch_gram_cost(size: Sequence[int], geometry: Geometry, channels: int) -> int:
    """What `patch_gram` costs for each pair of images, in multiply-adds."""
    shifts = _SHIFT_COST * sum(geometry.kernel) * math.prod(geometry.padded(size)) ** 2
    return math.prod(size) ** 2 * channels + shifts


def zeros_padded(geometry: Geometry, mode: str) -> bool:
    """Whether the padding, if any, is of zeros."""
    return mode == "zeros" or not any(map(any, geometry.padding))
