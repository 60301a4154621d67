"""All sections, in the order in which they are done."""

from __future__ import annotations

import os

from benchmarks.gpu_check import gradients, large, layers, self_check, steps, updates
from benchmarks.gpu_check.running import Item, Scale, Section

# What is only checked may share the GPU: most of its time is compiling, on the host.
WORKERS = max(1, min(16, os.cpu_count() or 2))


def _determinism(scale: Scale) -> list[Item]:
    return gradients.determinism(scale) + layers.determinism(scale)


SECTIONS = {
    section.name: section
    for section in (
        Section("self-check", 0.28, self_check.items, WORKERS),
        Section("first calls", 0.15, gradients.first_calls, WORKERS),
        Section("ops", 0.20, gradients.times),
        Section("updates", 0.05, updates.times),
        Section("steps", 0.12, steps.times),
        Section("layers", 0.10, layers.times),
        Section("determinism", 0.05, _determinism),
        Section("large", 0.05, large.items),
    )
}
