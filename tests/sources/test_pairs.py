"""Norms from pairs of positions equal the norms of the formed weight gradients, for every option of the layer."""

from functools import partial

import pytest
import torch
from torch import nn

from fastmtl.sources import pairs
from fastmtl.sources.graph import edges_of, users
from fastmtl.sources.pairs import PairsProbe, use_of
from fastmtl.sources.parameters import CarriedProbe

CONVOLUTIONS = {
    "3x3": dict(kernel_size=3, padding=1),
    "no-bias": dict(kernel_size=3, padding=1, bias=False),
    "1x1": dict(kernel_size=1),
    "stride": dict(kernel_size=3, stride=2, padding=1),
    "uneven": dict(kernel_size=(3, 2), stride=(2, 1), padding=(0, 1)),
    "dilation": dict(kernel_size=(2, 5), padding=(1, 2), dilation=(2, 1)),
    "reflect": dict(kernel_size=3, padding=1, padding_mode="reflect"),
    "same": dict(kernel_size=(5, 3), padding="same"),
    "everything": dict(kernel_size=(3, 4), stride=(2, 3), padding=(2, 1), dilation=(1, 2), padding_mode="circular"),
}
LINEARS = {"linear": (5,), "linear-positions": (3, 4)}


def located(trunk: nn.Module, layer: nn.Module, x: torch.Tensor) -> tuple[PairsProbe, CarriedProbe, torch.Tensor]:
    features = trunk(x)
    parameters = list(layer.parameters())
    roots = edges_of([features])
    ((node, position),) = users(roots, parameters)[0]
    use = use_of(node, position, parameters[0], parameters[1] if len(parameters) == 2 else None)
    assert use is not None
    return PairsProbe(roots, use), CarriedProbe(roots, edges_of(parameters), "norms"), features


def conv_problem(options, dtype, channels_last=False):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, **options)
    trunk = nn.Sequential(nn.Conv2d(3, 4, 1), layer, nn.GroupNorm(2, 6), nn.ReLU()).to(dtype)
    x = torch.randn(5, 3, 9, 7).to(dtype)
    return trunk, layer, x.to(memory_format=torch.channels_last) if channels_last else x


def linear_problem(shape, dtype, bias=True):
    torch.manual_seed(0)
    layer = nn.Linear(7, 5, bias=bias)
    trunk = nn.Sequential(nn.Linear(2, 7), layer, nn.LayerNorm(5), nn.ReLU()).to(dtype)
    return trunk, layer, torch.randn(*shape, 2).to(dtype)


PROBLEMS = {
    **{name: partial(conv_problem, options) for name, options in CONVOLUTIONS.items()},
    **{
        f"{name}-channels-last": partial(conv_problem, options, channels_last=True)
        for name, options in CONVOLUTIONS.items()
    },
    **{name: partial(linear_problem, shape) for name, shape in LINEARS.items()},
    **{f"{name}-no-bias": partial(linear_problem, shape, bias=False) for name, shape in LINEARS.items()},
}


def norms(problem):
    fast, formed, features = located(*problem)
    generator = torch.Generator().manual_seed(1)
    grads = [[torch.randn(features.shape, generator=generator).to(features) for _ in range(3)]]
    (total,), (measured,) = fast.sum_and_measure(grads)
    _, (expected,) = formed.sum_and_measure(grads)
    torch.testing.assert_close(total.double(), torch.stack(grads[0]).double().sum(0), rtol=0.01, atol=0.01)
    return measured, expected


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_in_float64(name):
    measured, expected = norms(PROBLEMS[name](dtype=torch.float64))
    assert measured.dtype == torch.float64
    torch.testing.assert_close(measured, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", PROBLEMS)
def test_as_exact_as_forming_in_float32(name):
    measured, formed = norms(PROBLEMS[name](dtype=torch.float32))
    _, exact = norms(PROBLEMS[name](dtype=torch.float64))
    error, plain = ((value.double() - exact).abs().max() for value in (measured, formed))
    # The two differ in where they round, by a few units in the last place of the sum.
    assert error <= 2 * plain + 8 * torch.finfo(torch.float32).eps * exact.max()


def test_bfloat16_is_widened_before_the_products():
    measured, formed = norms(PROBLEMS["3x3"](dtype=torch.bfloat16))
    assert measured.dtype == torch.float32
    torch.testing.assert_close(measured, formed.float(), rtol=2 * torch.finfo(torch.bfloat16).eps, atol=0)


def test_a_task_without_gradient_has_norm_zero():
    fast, _, features = located(*conv_problem(CONVOLUTIONS["3x3"], torch.float32))
    grad = torch.randn_like(features)
    (total,), (measured,) = fast.sum_and_measure([[None, grad]])
    assert torch.equal(total, grad)
    assert measured[0] == 0 and measured[1] > 0


@pytest.mark.parametrize(
    "layer",
    [nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 4, 3), nn.Conv1d(4, 4, 3)],
    ids=["groups", "transposed", "1d"],
)
def test_other_layers_are_left_to_forming(layer):
    output = layer(torch.randn(2, 4, 9) if isinstance(layer, nn.Conv1d) else torch.randn(2, 4, 9, 9))
    ((node, position),) = users(edges_of([output]), [layer.weight])[0]
    assert use_of(node, position, layer.weight, layer.bias) is None


def test_the_cheaper_way_is_chosen():
    def use(layer, x):
        ((node, position),) = users(edges_of([layer(x)]), [layer.weight])[0]
        return use_of(node, position, layer.weight, layer.bias)

    small, large = torch.randn(8, 256, 8, 8), torch.randn(2, 8, 64, 64)
    assert use(nn.Conv2d(256, 256, 3, padding=1), small).pays(3)
    assert not use(nn.Conv2d(8, 8, 3, padding=1), large).pays(3)
    assert use(nn.Linear(512, 512), torch.randn(32, 512)).pays(3)
    assert not use(nn.Linear(16, 16), torch.randn(512, 16)).pays(3)


def test_blocks_of_samples_do_not_matter(monkeypatch):
    problem = conv_problem(CONVOLUTIONS["everything"], torch.float64)
    measured, _ = norms(problem)
    monkeypatch.setattr(pairs, "_BLOCKS", 1)
    whole, _ = norms(problem)
    torch.testing.assert_close(measured, whole, rtol=1e-12, atol=0)
