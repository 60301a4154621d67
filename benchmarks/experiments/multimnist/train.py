"""Training with one method, and the comparison on held-out digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

import fastmtl
from benchmarks.experiments.multimnist.data import Digits, Pairs, training_pairs
from benchmarks.experiments.multimnist.model import CLASSIFICATION, KINDS, TASKS, MultiMNISTNet, task_losses

SourceName: TypeAlias = Literal["features", "layer"]

METHODS = ("equal", "uncertainty", "dwa", "gradnorm", "maxgnr")
MEASURING = ("gradnorm", "maxgnr")  # methods that measure gradients
NOISE = ("gnr", "variance")  # what MaxGNR measures besides


@dataclass(frozen=True)
class Settings:
    """What all methods have in common, and the two choices of GradNorm."""

    epochs: int = 8
    train_pairs: int = 8_192  # an epoch
    held_out_pairs: int = 5_000
    batch_size: int = 128
    lr: float = 1e-3
    weight_lr: float = 0.025  # of the weights that are learned; GradNorm's in its paper
    alpha: float = 0.12
    source: SourceName = "features"
    seed: int = 0

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * -(-self.train_pairs // self.batch_size)


@dataclass(frozen=True)
class Result:
    """One trained method; the dicts are by task."""

    method: str
    accuracy: dict[str, float]
    loss: dict[str, float]
    weights: dict[str, list[float]]  # before the first step and after each
    noise: dict[str, dict[str, list[float]]]  # of `NOISE`, after each step; empty where they are not measured


def make_balancer(method: str, model: MultiMNISTNet, settings: Settings) -> fastmtl.Balancer:
    """The one line in which the methods differ.

    Raises:
        ValueError: no such method.
    """
    if method == "equal":
        return fastmtl.FixedWeights(TASKS)
    if method == "uncertainty":
        return fastmtl.UncertaintyWeighting(TASKS, kinds=KINDS)
    if method == "dwa":
        return fastmtl.DynamicWeightAverage(TASKS)
    if method == "gradnorm":
        source = "features" if settings.source == "features" else model.last_shared_layer
        return fastmtl.GradNorm(TASKS, alpha=settings.alpha, source=source, lr=settings.weight_lr)
    if method == "maxgnr":
        return fastmtl.MaxGNR(TASKS, source=model.last_shared_layer)
    raise ValueError(f"method: expected one of {', '.join(METHODS)}, got {method!r}")


class Trainer:
    """A network, a balancer and their optimiser, with the same first weights for every method."""

    def __init__(self, method: str, settings: Settings):
        torch.manual_seed(settings.seed)
        self.model = MultiMNISTNet()
        self.balancer = make_balancer(method, self.model, settings)
        groups: list[dict[str, Any]] = [{"params": list(self.model.parameters())}]
        learned = list(self.balancer.parameters())  # uncertainty weighting's; the other methods have none
        if learned:
            # Adam moves by about lr a step: at the network's lr these would not arrive before training ends.
            groups.append({"params": learned, "lr": settings.weight_lr})
        self.optimizer = torch.optim.Adam(groups, lr=settings.lr)

    def step(self, batch: Pairs) -> None:
        """The training step, the same whatever the method."""
        self.optimizer.zero_grad()
        views = self.balancer.fork(self.model.backbone(batch.images))
        losses = task_losses({task: head(views[task]) for task, head in self.model.heads.items()}, batch)
        loss = self.balancer(losses)
        loss.backward()
        self.optimizer.step()


def train(
    method: str, settings: Settings, digits: Digits, held_out: Pairs, after_step: Callable[[], None] = lambda: None
) -> Result:
    """Train from scratch on pairs of ``digits``, then evaluate.

    Args:
        method: one of `METHODS`.
        settings: the rest of the experiment.
        digits: the training digits.
        held_out: pairs of other digits.
        after_step: called after each step, for a progress bar.
    """
    trainer = Trainer(method, settings)
    weights = [trainer.balancer.weights.tolist()]
    noise: dict[str, list[list[float]]] = {what: [] for what in NOISE}
    for epoch in range(settings.epochs):
        for batch in training_pairs(digits, settings.train_pairs, settings.seed, epoch).batches(settings.batch_size):
            trainer.step(batch)
            weights.append(trainer.balancer.weights.tolist())
            if isinstance(trainer.balancer, fastmtl.MaxGNR):
                for what in NOISE:
                    noise[what].append(getattr(trainer.balancer, what).tolist())
            after_step()
        trainer.balancer.end_epoch()
    weights[-1] = trainer.balancer.weights.tolist()  # some methods change them at the end of an epoch
    accuracy, loss = evaluate(trainer.model, held_out, settings.batch_size)
    measured = {what: _by_task(steps) for what, steps in noise.items() if steps}
    return Result(method, accuracy, loss, _by_task(weights), measured)


def _by_task(steps: list[list[float]]) -> dict[str, list[float]]:
    """[steps][T] values as a list for each task."""
    return {task: list(values) for task, values in zip(TASKS, zip(*steps, strict=True), strict=True)}


@torch.no_grad()
def evaluate(model: MultiMNISTNet, pairs: Pairs, batch_size: int) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracies of the classification tasks and unweighted mean losses of all tasks."""
    model.eval()
    correct = dict.fromkeys(CLASSIFICATION, 0)
    total = dict.fromkeys(TASKS, 0.0)
    for batch in pairs.batches(batch_size):
        outputs = model(batch.images)
        for task, loss in task_losses(outputs, batch).items():
            total[task] += loss.item() * len(batch)
        for task in CLASSIFICATION:
            correct[task] += int((outputs[task].argmax(dim=1) == getattr(batch, task)).sum())
    accuracy = {task: count / len(pairs) for task, count in correct.items()}
    return accuracy, {task: value / len(pairs) for task, value in total.items()}
