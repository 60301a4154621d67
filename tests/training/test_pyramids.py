"""Features in several levels: tuple, list, dict, namedtuple; some levels read by some heads only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from fastmtl import FixedWeights, GradNorm
from tests.training.networks import Plain, assert_same_gradients, plain_gradients, task_norms


class Levels(NamedTuple):
    fine: Tensor
    coarse: Tensor


FORMS: dict[str, tuple[Callable[[Tensor, Tensor], Any], type]] = {
    "tuple": (lambda fine, coarse: (fine, coarse), tuple),
    "list": (lambda fine, coarse: [fine, coarse], list),
    "dict": (lambda fine, coarse: {"fine": fine, "coarse": coarse}, dict),
    "namedtuple": (Levels, Levels),
}


class Pyramid(nn.Module):
    """Two levels of different shape and channels; the coarse one is computed from the fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 4, 3, padding=1)
        self.coarse = nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = torch.relu(self.fine(x))
        return fine, torch.relu(self.coarse(fine))


def pair(levels: Any) -> tuple[Tensor, Tensor]:
    return tuple(levels.values()) if isinstance(levels, dict) else tuple(levels)


def losses(views: list[Any]) -> list[Tensor]:
    """Task 0 reads the fine level, task 1 the coarse one, task 2 both."""
    (fine, _), (_, coarse), both = (pair(view) for view in views)
    return [fine.square().mean(), coarse.abs().mean() * 3, both[0].mean() + both[1].square().mean()]


def check(balancer: GradNorm, form: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Plain]:
    model = Pyramid().to(dtype)
    x = torch.randn(2, 3, 6, 6, dtype=dtype)
    used = balancer.weights.clone()
    views = balancer.fork(FORMS[form][0](*model(x)))
    assert isinstance(views, tuple) and len(views) == 3
    assert all(type(view) is FORMS[form][1] for view in views)
    balancer(losses(views)).backward()

    levels = tuple(level.view_as(level) for level in model(x))  # the levels as the heads see them
    plain = plain_gradients(list(model.parameters()), losses([levels] * 3), used)
    assert_same_gradients([parameter.grad for parameter in model.parameters()], plain, 3, dtype)
    levels = tuple(level.view_as(level) for level in model(x))
    norms = task_norms(losses([levels] * 3), levels)
    torch.testing.assert_close(balancer.norms.double(), norms, rtol=4 * max(torch.finfo(dtype).eps, 2**-23), atol=0)
    return [parameter.grad for parameter in model.parameters()], plain


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forms(form: str, dtype: torch.dtype, backend: str) -> None:
    balancer = GradNorm(3, alpha=0.5)
    balancer.weights.copy_(torch.tensor([0.5, 1.5, 1.0]))
    check(balancer, form, dtype)
    assert balancer.counters.tolist() == [1, 0]


def test_norms_of_levels_add_up(backend: str) -> None:
    balancer = GradNorm(2, alpha=0.5)
    fine, coarse = torch.zeros(3, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    (a_fine, a_coarse), (_, b_coarse) = balancer.fork((fine, coarse))
    balancer([3 * a_fine[0] + 4 * a_coarse[0, 1] + 1, b_coarse[0, 0] + 1]).backward()
    assert balancer.norms.tolist() == [5.0, 1.0]


def test_level_that_no_head_reads(backend: str) -> None:
    balancer = GradNorm(2, alpha=0.5)
    used, unused = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    views = balancer.fork((used, unused * 2))
    balancer([view[0].sum() * (k + 1) + 1 for k, view in enumerate(views)]).backward()
    assert unused.grad is None or not unused.grad.any()
    assert torch.equal(used.grad, torch.full((3,), 3.0))
    torch.testing.assert_close(balancer.norms, torch.tensor([3**0.5, 12**0.5]), rtol=2**-22, atol=0)


def test_levels_of_different_dtypes(backend: str) -> None:
    """float32 and bfloat16 levels, as autocast makes them."""
    balancer = GradNorm(2, alpha=0.5)
    wide, narrow = torch.zeros(2, requires_grad=True), torch.zeros(2, dtype=torch.bfloat16, requires_grad=True)
    views = balancer.fork({"wide": wide, "narrow": narrow})
    balancer([3 * v["wide"][0] + 4 * v["narrow"][1].float() + 1 for v in views]).backward()
    assert balancer.norms.tolist() == [5.0, 5.0]
    assert wide.grad.tolist() == [6.0, 0.0] and narrow.grad.tolist() == [0.0, 8.0]


def test_same_tensor_twice(backend: str) -> None:
    balancer = GradNorm(2, alpha=0.5)
    z = torch.zeros(2, requires_grad=True)
    views = balancer.fork([z, z])
    balancer([view[0].sum() + view[1].sum() + 1 for view in views]).backward()
    assert z.grad.tolist() == [4.0, 4.0]


@pytest.mark.parametrize("balancer", [FixedWeights(2), GradNorm(2, alpha=0.5)], ids=["fixed", "gradnorm"])
def test_nested_structure_is_refused_by_name(balancer: Any) -> None:
    z = torch.zeros(2, requires_grad=True)
    with pytest.raises(TypeError, match=r"features\[1\]: expected a floating-point tensor, got list"):
        balancer.fork([z, [z]])
