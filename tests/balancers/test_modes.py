"""A balancer that was first called in inference mode, or copied, trains afterwards."""

import copy

import torch

import fastmtl


def step(balancer, factor=1.0):
    features = torch.full((2, 3), 2.0, requires_grad=True) * factor
    loss = balancer([(k + 1) * view.square().mean() for k, view in enumerate(balancer.fork(features))])
    if torch.is_grad_enabled():
        loss.backward()
    return loss


def test_inference_mode_first():
    balancer, other = fastmtl.GradNorm(2, alpha=0.5), fastmtl.GradNorm(2, alpha=0.5)
    with torch.inference_mode():
        step(balancer)
    assert balancer.weights.tolist() == [1.0, 1.0]
    step(balancer)
    step(other)
    assert torch.equal(balancer.weights, other.weights)
    assert not torch.equal(balancer.weights, torch.ones(2))


def test_a_copy_trains_on_its_own():
    balancer = fastmtl.GradNorm(2, alpha=0.5)
    step(balancer)
    twin = copy.deepcopy(balancer)
    step(twin)
    assert not torch.equal(balancer.weights, twin.weights)
