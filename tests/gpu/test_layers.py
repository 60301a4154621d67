"""The kernel that forms weight gradients, for shapes that no tile fits: against gradients by autograd, sample by sample."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmtl.backends import triton as backend
from fastmtl.backends.layer_moments.conv import ConvFactors
from fastmtl.backends.layer_moments.patches import Geometry
from fastmtl.backends.triton import chips, layers
from tests.gpu.executing import SMALL, WIDE, executed_by_ttsem
from tests.gpu.ptx import executed_as_ptx

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)


@dataclass(frozen=True)
class Conv:
    """A convolution without names of its own: channels of all groups, one number for all dimensions."""

    name: str
    inputs: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    batch: int = 3
    tasks: int = 2
    bias: bool = True

    def arguments(self, dtype: torch.dtype) -> tuple[Tensor, list[Tensor | None]]:
        generator = torch.Generator().manual_seed(3)
        images = torch.randn(self.batch, self.inputs, *self.size, generator=generator).to(dtype)
        like = self.output(
            images.double(), torch.zeros(self.outputs, self.inputs // self.groups, *self.kernel).double()
        )
        grads = [torch.randn(like.shape, generator=generator).to(dtype) for _ in range(self.tasks)]
        return images, [None if k == 4 else grad for k, grad in enumerate(grads)]

    def output(self, images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        convolution = CONVOLUTIONS[len(self.size) - 1]
        return convolution(images, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def expected(self, images: Tensor, grads: list[Tensor | None]) -> tuple[Tensor, Tensor]:
        weight = torch.zeros(self.outputs, self.inputs // self.groups, *self.kernel, dtype=torch.float64)
        parameters = [weight.requires_grad_(), torch.zeros(self.outputs, dtype=torch.float64).requires_grad_()]
        by_task = []
        for grad in grads:
            samples = []
            for image, own in zip(images, images if grad is None else grad, strict=True):
                output = self.output(image[None].double(), *parameters)
                flow = torch.zeros_like(output) if grad is None else own[None].double()
                found = torch.autograd.grad(output, parameters, flow)
                samples.append(torch.cat([part.flatten() for part in found[: 1 + self.bias]]))
            by_task.append(torch.stack(samples))
        c = torch.stack(by_task)
        return c.sum(1) @ c.sum(1).T, self.batch * torch.einsum("kbp,jbp->kj", c, c)

    def moments(self, images: Tensor, grads: list[Tensor | None], per_sample: bool) -> tuple[Tensor, Tensor]:
        rank = len(self.size)
        return backend.conv_moments(
            images, grads, self.kernel, [self.stride] * rank, [self.padding] * (2 * rank), [self.dilation] * rank,
            self.groups, False, "zeros", self.bias, per_sample, "form",
        )  # fmt: skip


ODD = (
    Conv("odd", 5, 37, (7, 6), (3, 2), padding=1),
    Conv("tiles", 8, 70, (5, 5), (3, 3), padding=1, batch=2),  # 73 inputs of a position
    Conv("pointwise", 33, 9, (5, 3), (1, 1)),
    Conv("pointwise-padded", 3, 4, (5, 3), (1, 1), padding=1),
    Conv("strided", 3, 6, (9, 8), (3, 3), stride=2, padding=1),
    Conv("dilated", 3, 6, (9, 8), (3, 2), dilation=2, padding=1, bias=False),
    Conv("groups", 6, 9, (5, 5), (3, 3), padding=1, groups=3),
    Conv("depthwise", 6, 6, (5, 5), (3, 3), padding=1, groups=6, bias=False),
    Conv("3d", 2, 3, (4, 3, 5), (2, 3, 2), padding=1),
    Conv("1d", 4, 5, (23,), (5,), stride=3, padding=2),
    Conv("many-tasks", 5, 7, (4, 4), (3, 3), padding=1, tasks=10, batch=2),
    Conv("taps", 16, 9, (4, 4), (3, 3), padding=1, batch=2),  # several elements of the kernel in a tile
    Conv("one-tap", 64, 9, (4, 3), (3, 3), padding=1, batch=2),  # one
    Conv("wide", 128, 9, (3, 4), (2, 1), batch=2),  # of twice as many rows
    Conv("sliced", 4, 6, (13, 13), (3, 3), padding=1, batch=7),
)


def _check(conv: Conv, dtype: torch.dtype, per_sample: bool, images: Tensor, grads: list[Tensor | None]) -> None:
    M, Q = conv.expected(images, grads)
    found = conv.moments(images, grads, per_sample)
    norms = M.diagonal().sqrt()
    assert ((found[0] - M).abs() <= 2e-6 * torch.outer(norms, norms)).all()
    norms = Q.diagonal().sqrt()
    assert not per_sample or ((found[1] - Q).abs() <= 2e-6 * torch.outer(norms, norms)).all()


@pytest.mark.parametrize("per_sample", [False, True], ids=["M", "M-Q"])
@pytest.mark.parametrize("conv", ODD, ids=lambda conv: conv.name)
def test_odd_shapes(conv, per_sample):
    dtype = torch.float32 if conv.kernel[0] % 2 else torch.bfloat16
    with chips.assume(WIDE if conv.name == "sliced" else SMALL), executed_by_ttsem():
        _check(conv, dtype, per_sample, *conv.arguments(dtype))


@pytest.mark.parametrize("per_sample", [False, True], ids=["M", "M-Q"])
@pytest.mark.parametrize("name", ["sliced", "groups", "wide"])
def test_odd_shapes_as_ptx(name, per_sample):
    conv = next(conv for conv in ODD if conv.name == name)
    with chips.assume(WIDE), executed_as_ptx(range(2)) as run:
        _check(conv, torch.bfloat16, per_sample, *conv.arguments(torch.bfloat16))
    assert [launch.name for launch in run.launches] == ["form_moments", "slice_moments"][: 1 + (name == "sliced")]


def test_layouts_are_read_where_they_are():
    conv = replace(ODD[0], tasks=3)
    images, grads = conv.arguments(torch.float32)
    grads[1] = grads[1].movedim(1, -1).contiguous().movedim(-1, 1)
    grads[2] = grads[2][..., :1].expand(grads[2].shape)
    channels_last = images.movedim(1, -1).contiguous().movedim(-1, 1)
    with chips.assume(SMALL), executed_by_ttsem():
        _check(conv, torch.float32, True, channels_last, grads)


def test_inputs_of_another_dtype():
    conv = ODD[0]
    images, grads = conv.arguments(torch.bfloat16)
    with chips.assume(SMALL), executed_by_ttsem():
        _check(conv, torch.bfloat16, True, images.float() + 1e-3, grads)


def test_a_task_without_gradient_is_zero_whatever_the_inputs_are():
    conv = ODD[0]
    images, grads = conv.arguments(torch.float32)
    images[1, 2, 3, 4] = float("inf")
    with chips.assume(SMALL), executed_by_ttsem():
        M, Q = conv.moments(images, [grads[0], None], True)
    for moments in (M, Q):
        assert not moments[0, 0].isfinite()
        assert moments[1, 1] == 0.0


@pytest.mark.parametrize("per_sample", [False, True], ids=["M", "M-Q"])
def test_what_is_read(per_sample):
    """The formula of the kernel's docstring, in bytes; what is under the kernel and not padding is counted here by hand."""
    conv = Conv("", 15, 70, (4, 5), (3, 3), padding=1, batch=2)
    images, grads = conv.arguments(torch.bfloat16)
    geometry = Geometry((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
    with chips.assume(SMALL), executed_as_ptx([0]) as run:
        layers.form_moments(ConvFactors(images, grads, geometry, "zeros", 1, True).operands(), per_sample)
    (launch,) = run.launches
    bound = launch.bound
    tiles_in, tiles_out = -(-15 * 9 // bound["BI"]) + 1, -(-70 // bound["BO"])
    assert (tiles_in > 2) and (tiles_out > 1)
    under = (3 * 4 - 2) * (3 * 5 - 2)
    elements = 2 * 2 * 20 * 70 * tiles_in + 2 * 15 * under * tiles_out
    programs = launch.grid[0]
    rows = programs + -(-programs // bound["group"])
    partials = rows * (bound["HALF"] + 1) * 4 * (1 + per_sample)
    assert run.total("gld_bytes") == 2 * elements + partials
    assert run.total("lld_bytes") == run.total("lst_bytes") == 0
