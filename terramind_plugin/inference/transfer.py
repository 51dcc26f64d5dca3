"""Asynchronous copies of windows to the device and of finished rows back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terramind_plugin.raster.writer import Layer

FINISH_ROWS = 32
"""Number of blended rows that are turned into layers at once."""
STORED_AS = {"uint8": torch.uint8, "int8": torch.int8, "int16": torch.int16, "uint16": torch.int16}
"""Tensor type for values of each file type. PyTorch supports little on uint16, so its bits are sent as int16."""
UNSIGNED = 2**16 - 1
"""Mask of the bits of a uint16."""


class WindowMemory:
    """Memory of a batch of windows, reused for later batches because new memory costs as much as reading.

    If all windows of a batch have the type of their file, they are sent in it and become float32 on the device.

    Args:
        batch_size: Maximum number of windows in a batch.
        device: Device of the model. Memory for a GPU is pinned.
        keep_types: Whether windows keep their type until they are on the device.
    """

    def __init__(self, batch_size: int, device: torch.device, *, keep_types: bool | None = None) -> None:
        self.batch_size = batch_size
        self.device = device
        self.keep_types = device.type != "cpu" if keep_types is None else keep_types
        self._rooms: dict[tuple[str, str], Tensor] = {}
        self._types: dict[str, str] = {}
        self._sent: Any = None

    def begin(self) -> None:
        """Wait until the previous batch has been copied to the device."""
        if self._sent is not None:
            self._sent.synchronize()
        self._sent = None
        self._types = {}

    def put(self, name: str, number: int, image: NDArray[Any]) -> None:
        """Put an image into a batch.

        Args:
            name: Modality.
            number: Number of the window in the batch; windows are added one after the other.
            image: Values [bands, h, w] or [bands, dates, h, w].
        """
        wanted = image.dtype.name if self.keep_types and image.dtype.name in STORED_AS else "float32"
        here = self._types.setdefault(name, wanted)
        if here not in (wanted, "float32"):  # the first window with gaps, which are filled with means
            earlier = self._room(name, here, image.shape)[:number]
            self._room(name, "float32", image.shape)[:number] = earlier
            here = self._types[name] = "float32"
        # Copied by NumPy: Torch would start threads for it, which compete with those of the model.
        self._room(name, here, image.shape)[number] = image

    def _room(self, name: str, dtype: str, shape: Sequence[int]) -> NDArray[Any]:
        key = name, dtype
        if key not in self._rooms:
            kind = STORED_AS.get(dtype, torch.float32)
            self._rooms[key] = torch.empty(
                self.batch_size, *shape, dtype=kind, pin_memory=self.device.type == "cuda"
            )  # fmt: skip
        room: NDArray[Any] = self._rooms[key].numpy()
        return room.view(np.uint16) if dtype == "uint16" else room

    def send(self, count: int, stream: torch.cuda.Stream | None = None) -> tuple[dict[str, Tensor], Any]:
        """Return the images on the device by modality, float32, and the CUDA event that marks the end of the copy.

        Args:
            count: Number of windows.
            stream: Stream of the copies, so that the model's stream does not wait; None without CUDA.
        """
        rooms = {name: (self._rooms[name, dtype][:count], dtype) for name, dtype in self._types.items()}
        if stream is None:
            return {name: as_float(room.to(self.device), dtype) for name, (room, dtype) in rooms.items()}, None
        with torch.cuda.stream(stream):
            images = {
                name: as_float(room.to(self.device, non_blocking=True), dtype) for name, (room, dtype) in rooms.items()
            }
            self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._sent.record(stream)
        return images, self._sent


def as_float(stored: Tensor, dtype: str) -> Tensor:
    """Return values as float32.

    Args:
        stored: Values, of a type of `STORED_AS` or float32.
        dtype: Type of the values in the file, whose bits `stored` holds.
    """
    return (stored.int() & UNSIGNED).float() if dtype == "uint16" else stored.float()


class FinishingModel(Protocol):
    """A model that turns blended rows into layers, see `SceneModel`."""

    layers: tuple[Layer, ...]

    def finish(self, blended: Tensor) -> Sequence[Tensor]:
        """Return the values of each layer, [bands, rows, W]."""
        ...


class TakenRows:
    """Layers of finished rows, whose copy from the device may still be under way.

    Args:
        model: Model of the scene.
        blended: Results [channels, rows, W]; they may change as soon as this object exists.
        valid: Boolean [rows, W], True where there is data; it may change as soon as this object exists.
        stream: CUDA stream of the copies; None without CUDA.
    """

    def __init__(
        self, model: FinishingModel, blended: Tensor, valid: NDArray[np.bool_], stream: torch.cuda.Stream | None = None
    ) -> None:
        self._layers, self._valid = model.layers, valid.copy()
        self._finite = np.empty(valid.shape, bool)
        self._arrays = [np.empty((len(layer.descriptions), *valid.shape), layer.dtype) for layer in model.layers]
        self._coming: list[tuple[NDArray[Any], Tensor]] = []
        self._event: Any = None
        with torch.no_grad():
            for first in range(0, len(valid), FINISH_ROWS):  # a few rows at once, to limit the model's memory
                rows = slice(first, first + FINISH_ROWS)
                made = [blended[:, rows].isfinite().all(dim=0), *model.finish(blended[:, rows])]
                places = [self._finite[rows], *(array[:, rows] for array in self._arrays)]
                for place, values in zip(places, made, strict=True):
                    self._take(place, values, stream)
        if stream is not None:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(stream)
            torch.cuda.current_stream(blended.device).wait_event(self._event)  # before these rows change

    def _take(self, place: NDArray[Any], values: Tensor, stream: torch.cuda.Stream | None) -> None:
        if stream is None:
            place[...] = values.cpu().numpy()
            return
        stream.wait_stream(torch.cuda.current_stream(values.device))
        with torch.cuda.stream(stream):
            host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            host.copy_(values, non_blocking=True)
            values.record_stream(stream)
        self._coming.append((place, host))

    def finish(self) -> tuple[list[NDArray[Any]], int]:
        """Return the layers, and the number of pixels that have data but no finite result.

        Pixels without data or without a finite result get the layer's nodata value. In class maps the model itself
        writes the nodata value, because it knows which probabilities are not finite.
        """
        if self._event is not None:
            self._event.synchronize()
        for place, host in self._coming:
            place[...] = host.numpy()
        self._coming = []
        wrong = int((self._valid & ~self._finite).sum())
        for layer, array in zip(self._layers, self._arrays, strict=True):
            if not self._valid.all():
                array[:, ~self._valid] = layer.nodata
            if wrong and layer.dtype.startswith("float"):
                array[~np.isfinite(array)] = layer.nodata
        return self._arrays, wrong


def finish_rows(model: FinishingModel, blended: Tensor, valid: NDArray[np.bool_]) -> tuple[list[NDArray[Any]], int]:
    """Return the layers of finished rows, and the number of pixels that have data but no finite result.

    Args:
        model: As in `TakenRows`.
        blended: As in `TakenRows`.
        valid: As in `TakenRows`.
    """
    return TakenRows(model, blended, valid).finish()
