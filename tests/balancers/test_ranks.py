"""Several ranks: said, not silent, since the weights of the ranks would drift apart."""

import warnings

import pytest
import torch

import fastmtl


@pytest.fixture(params=[1, 2])
def ranks(request, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: request.param)
    return request.param


def step(balancer):
    views = balancer.fork(torch.ones(2, 3, requires_grad=True) * 2)
    balancer([view.square().mean() for view in views]).backward()


def test_a_measuring_balancer_warns_once(ranks):
    balancer = fastmtl.GradNorm(2, alpha=0.5)
    if ranks > 1:
        with pytest.warns(UserWarning, match="the weights of the ranks drift apart"):
            step(balancer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(balancer)


def test_others_need_no_warning(ranks):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(fastmtl.FixedWeights(2))
