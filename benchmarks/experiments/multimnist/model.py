"""The network: one shared convolutional backbone, three heads."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.experiments.multimnist.data import Pairs

TASKS = ("left", "right", "reconstruction")
CLASSIFICATION = ("left", "right")
# What uncertainty weighting has to know of each loss.
KINDS = {"left": "classification", "right": "classification", "reconstruction": "regression"}

WIDTH = 48


def _classifier() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(WIDTH * 9 * 9, 64), nn.ReLU(), nn.Linear(64, 10))


def _decoder() -> nn.Module:
    """Draws both digits apart, each on its own 36x36 canvas."""
    return nn.Sequential(
        nn.ConvTranspose2d(WIDTH, 16, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 2, 4, stride=2, padding=1),
    )


class MultiMNISTNet(nn.Module):
    """Backbone and heads. The last shared layer is a convolution; its norm and ReLU are shared too."""

    def __init__(self) -> None:
        super().__init__()
        self.last_shared_layer = nn.Conv2d(32, WIDTH, 3, padding=1)
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            self.last_shared_layer,
            nn.GroupNorm(8, WIDTH),
            nn.ReLU(),
        )
        self.heads = nn.ModuleDict({"left": _classifier(), "right": _classifier(), "reconstruction": _decoder()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """The outputs of all heads: what to call when not training."""
        features = self.backbone(images)
        return {task: head(features) for task, head in self.heads.items()}


def task_losses(outputs: dict[str, Tensor], batch: Pairs) -> dict[str, Tensor]:
    """One scalar a task.

    The reconstruction's is the squared error *summed* over the pixels of an image: about 200 at the start, where a
    cross entropy is 2.3. Such unequal scales are what weighting methods are for.
    """
    error = F.mse_loss(outputs["reconstruction"], batch.clean, reduction="sum") / len(batch)
    return {
        "left": F.cross_entropy(outputs["left"], batch.left),
        "right": F.cross_entropy(outputs["right"], batch.right),
        "reconstruction": error,
    }
