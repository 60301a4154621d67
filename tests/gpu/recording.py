"""Launches as a GPU would see them, recorded with fake CUDA tensors: no memory, and nothing can be read on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from fastmtl.backends.triton import chips
from tests.gpu.launches import Launch, intercepted


class _AsOnGpu(TorchFunctionMode):
    """What fake tensors do not do on a host without a GPU: slices and copies (torch's own look for the device), addresses."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__ and isinstance(args[1], slice):
            tensor, index = args
            return torch.ops.aten.slice.Tensor(tensor, 0, index.start, index.stop, index.step or 1)
        if func is torch.Tensor.data_ptr:  # allocators hand out aligned memory
            return args[0].storage_offset() * args[0].element_size()
        if func is torch.Tensor.copy_:
            return torch.ops.aten.copy_(*args)
        return func(*args, **(kwargs or {}))


def recorded(call: Callable[[], Any], chip: chips.Chip) -> list[Launch]:
    """The launches of ``call``, which makes its tensors itself, on ``chip``.

    Reading a number of a fake tensor raises. As in the capture of a graph, no memory is kept from call to call.
    """
    launches: list[Launch] = []
    with (
        FakeTensorMode(),
        _AsOnGpu(),
        chips.assume(chip),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True),
        mock.patch.object(torch.cuda, "current_device", return_value=0),
        intercepted(launches.append),
    ):
        call()
    return launches
