"""Reusable memory for batches, into which samples are written directly."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

LEAST = 2**20
"""Minimum size in bytes of memory that is kept for another batch; the C library keeps smaller pieces itself."""
KEPT = 8
"""Maximum number of pieces of memory that are kept unused."""
_scratch = threading.local()


class Slots:
    """Memory for batches, reused once no tensor in it is referenced any more.

    The C library returns large pieces to the system, so that without reuse each batch would cost new page faults.

    Worker processes write into shared memory, which goes to the main process as it is and is not used again. Pinned
    memory comes from torch, which itself waits for copies to a GPU that are still under way.
    """

    def __init__(self) -> None:
        self.pinned = False
        """Whether the main process gives pinned memory."""
        self._free: dict[int, NDArray[np.uint8]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"pinned": self.pinned}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_free": {}}  # a copy begins with no memory

    def take(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor whose content is undefined."""
        size = int(np.prod(shape)) * dtype.itemsize
        if get_worker_info() is not None:
            storage = torch.UntypedStorage._new_shared(size)  # type: ignore[no-untyped-call]
            return torch.empty(0, dtype=dtype).set_(storage).view(*shape)
        if self.pinned:
            return torch.empty(*shape, dtype=dtype, pin_memory=True)
        if size < LEAST:
            return torch.empty(*shape, dtype=dtype)
        fits = (key for key, one in list(self._free.items()) if len(one) == size)
        memory = self._free.pop(next(fits, 0), None)  # None if another thread has taken it
        if memory is None:
            memory = np.empty(size, np.uint8)
        # Only the tensor's storage refers to this view, so the view lives as long as the storage.
        view = memory[:]
        weakref.finalize(view, _give_back, weakref.ref(self), memory).atexit = False
        return torch.from_numpy(view).view(dtype).view(*shape)


def _give_back(slots: weakref.ref[Slots], memory: NDArray[np.uint8]) -> None:
    owner = slots()
    if owner is not None:
        owner._free[id(memory)] = memory
        for key in list(owner._free)[:-KEPT]:
            owner._free.pop(key, None)


class BatchMemory:
    """Tensors of a batch, in which samples are written one after the other.

    Args:
        slots: Source of the memory.
        count: Number of samples.
    """

    def __init__(self, slots: Slots, count: int) -> None:
        self._slots = slots
        self._count = count
        self._whole: dict[str, Tensor] = {}

    def take(self, name: str, position: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return the tensor of one sample: its place in the batch or, if its shape differs, a separate tensor.

        Args:
            name: Name of the input.
            position: Number of the sample in the batch.
            shape: Shape of the sample.
            dtype: Type of the tensor.
        """
        whole = self._whole.get(name)
        if whole is None:
            whole = self._whole[name] = self._slots.take((self._count, *shape), dtype)
        return whole[position] if whole.shape[1:] == torch.Size(shape) else torch.empty(*shape, dtype=dtype)


def join(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return samples as one batch if they already lie in memory as a batch, otherwise None.

    Args:
        tensors: Tensors of all samples, in their order.
    """
    first = tensors[0]
    size = first.numel()
    storage = first.untyped_storage().data_ptr()
    for number, tensor in enumerate(tensors):
        if (
            tensor.untyped_storage().data_ptr() != storage
            or tensor.storage_offset() != first.storage_offset() + number * size
            or tensor.shape != first.shape
            or tensor.dtype != first.dtype
            or not tensor.is_contiguous()
        ):
            return None
    return first.as_strided((len(tensors), *first.shape), (size, *first.stride()))


def scratch(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return an array with undefined content. The next call with this name in this thread reuses its memory.

    Args:
        name: Purpose of the memory.
        shape: Shape of the array.
        dtype: Type of the array.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    memory = getattr(_scratch, name, None)
    if memory is None or len(memory) < size:
        memory = np.empty(size, np.uint8)
        setattr(_scratch, name, memory)
    part: NDArray[Any] = memory[:size]
    return part.view(dtype).reshape(shape)
