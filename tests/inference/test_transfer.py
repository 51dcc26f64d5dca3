"""Windows go to the device in the type of their file, and rows come back, with the same values as without."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from terramind_plugin.inference.stream import Streamer
from terramind_plugin.inference.transfer import TakenRows, WindowMemory
from terramind_plugin.inference.windows import plan_windows
from terramind_plugin.raster.reader import Expected, FilledPixels, Source
from terramind_plugin.raster.writer import Layer
from tests.inference.test_stream import write_scene

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float32", "int32"])
@pytest.mark.parametrize("keep_types", [True, False])
def test_values_of_all_types_arrive(dtype: str, keep_types: bool) -> None:
    memory = WindowMemory(4, CPU, keep_types=keep_types)
    high = {"uint16": 65535, "int16": 32767, "uint8": 255, "int8": 127}.get(dtype, 70000)
    low = -high if dtype[0] != "u" else 0
    for seed in range(2):  # the memory is used again
        windows = np.random.default_rng(seed).integers(low, high, (3, 2, 4, 5), endpoint=True).astype(dtype)
        windows[0, 0, 0, :2] = low, high
        memory.begin()
        for number, window in enumerate(windows):
            memory.put("x", number, window)
        images, event = memory.send(3)
        assert event is None
        assert images["x"].dtype == torch.float32
        assert torch.equal(images["x"], torch.from_numpy(windows.astype(np.float32)))


@pytest.mark.parametrize("gap", [0, 1, 2])
def test_a_window_with_filled_gaps_makes_the_batch_float(gap: int) -> None:
    memory = WindowMemory(3, CPU, keep_types=True)
    windows: list[Any] = [np.full((1, 2, 2), 60000 + number, np.uint16) for number in range(3)]
    windows[gap] = windows[gap].astype(np.float32) + np.float32(0.25)
    for _ in range(2):
        memory.begin()
        for number, window in enumerate(windows):
            memory.put("x", number, window)
            memory.put("y", number, np.full((1, 2, 2), number, np.uint8))
        images, _ = memory.send(3)
        assert torch.equal(images["x"], torch.from_numpy(np.stack(windows).astype(np.float32)))
        assert torch.equal(images["y"][:, 0, 0, 0], torch.arange(3.0))


class Identity:
    """Gives back the images that it is given."""

    channels = 2
    layers = (Layer("same", "float32", ("a", "b"), "", float("nan")),)

    def __call__(self, images: Any, corners: Any) -> torch.Tensor:
        assert images["OWN"].dtype == torch.float32
        return images["OWN"]

    def finish(self, blended: torch.Tensor) -> list[torch.Tensor]:
        return [blended]


@pytest.mark.parametrize("gaps", [False, True])
def test_a_scene_of_integers_arrives_in_its_type(tmp_path: Path, monkeypatch: Any, gaps: bool) -> None:
    values = np.random.default_rng(0).integers(1, 65535, (2, 90, 70)).astype(np.uint16)
    if gaps:
        values[:, 20:50, 10:30] = 0
    path = write_scene(tmp_path / "scene.tif", values, nodata=0)
    plan = plan_windows(90, 70, 32, 24, multiple=8, align=8)
    results = []
    for keep in (False, True):
        monkeypatch.setattr(WindowMemory.__init__, "__kwdefaults__", {"keep_types": keep})
        source = Source(path, Expected("OWN", ("a", "b"), (1390.5, 2.25)))
        source.keep_type = keep
        made: list[Any] = []
        read = source.read(0, 0, 8, 8).values
        assert read.dtype == (np.uint16 if keep else np.float32)
        streamer = Streamer(Identity(), {"OWN": source}, plan, 4)  # type: ignore[arg-type]
        streamer.run(plan.blocks(4), (), lambda first, arrays, made=made: made.append(arrays[0]))  # type: ignore[misc]
        source.close()
        results.append(np.concatenate(made, axis=1))
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_allclose(results[0][:, values[0] > 0], values[:, values[0] > 0].astype(np.float32), rtol=1e-6)
    assert np.isnan(results[0][:, values[0] == 0]).all()


class Waiting:
    """An input whose reading ends when all inputs are being read."""

    barrier = threading.Barrier(2, timeout=20)

    def __init__(self, number: int) -> None:
        self.number = number

    def read(self, row: int, column: int, height: int, width: int) -> FilledPixels:
        self.barrier.wait()
        return FilledPixels(np.full((2, height, width), self.number, np.float32), np.ones((height, width), bool))


def test_inputs_are_read_at_the_same_time() -> None:
    model: Any = Identity()
    model.layers = Identity.layers
    inputs: Any = {"OWN": Waiting(1), "OTHER": Waiting(2)}
    plan = plan_windows(40, 40, 32, 24, multiple=8, align=8)
    made: list[Any] = []
    Streamer(model, inputs, plan, 4).run(plan.blocks(4), (), lambda first, arrays: made.append(arrays[0]))
    np.testing.assert_allclose(np.concatenate(made, axis=1), 1, rtol=1e-6)


def test_rows_may_change_once_they_are_taken() -> None:
    blended, valid = torch.randn(2, 70, 5), np.ones((70, 5), bool)
    blended[0, 40, 1] = torch.inf
    valid[3, 2] = False
    model: Any = SimpleNamespace(layers=Identity.layers, finish=lambda rows: [rows])
    taken, expected = TakenRows(model, blended, valid), blended.numpy().copy()
    blended.zero_()
    valid[:] = True
    (array,), wrong = taken.finish()
    expected[:, 3, 2] = np.nan
    expected[0, 40, 1] = np.nan
    np.testing.assert_array_equal(array, expected)
    assert wrong == 1
