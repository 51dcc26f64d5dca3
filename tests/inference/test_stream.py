"""Scenes of any size through a model: every pixel once, blended, and gaps stay where they are."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import Affine
from torch import Tensor

from terramind_plugin.errors import DataError
from terramind_plugin.inference.options import Options
from terramind_plugin.inference.planning import plan_jobs
from terramind_plugin.inference.runner import plan_units
from terramind_plugin.inference.stream import Streamer, ahead
from terramind_plugin.inference.windows import plan_windows
from terramind_plugin.raster.reader import Expected, Source
from terramind_plugin.raster.writer import Layer

TWO_BANDS = Expected("OWN", ("a", "b"), (5.0, -5.0))
GAP = -9999.0


class Pixelwise:
    """Returns what it gets, and its square: a model that no window border can change."""

    channels = 3
    layers = (
        Layer("same", "float32", ("a", "b"), "1", float("nan")),
        Layer("square", "float32", ("a2",), "1", GAP),
    )

    def __call__(self, images: Any, corners: Any) -> Tensor:
        assert all(torch.isfinite(image).all() for image in images.values())
        x = images["OWN"]
        assert len(corners) == len(x)
        return torch.cat([x, x[:, :1] ** 2], dim=1)

    def finish(self, blended: Tensor) -> list[Tensor]:
        return [blended[:2], blended[2:]]


class Mean(Pixelwise):
    """Returns the mean of the window: what it makes of a pixel depends on the window."""

    channels = 1
    layers = (Layer("mean", "float32", ("mean",), "1", float("nan")),)

    def __call__(self, images: Any, corners: Any) -> Tensor:
        x = images["OWN"]
        return x.mean(dim=(1, 2, 3), keepdim=True).expand(-1, 1, *x.shape[2:])

    def finish(self, blended: Tensor) -> list[Tensor]:
        return [blended]


def write_scene(path: Path, values: np.ndarray, **changes: Any) -> Path:
    profile = {"driver": "GTiff", "dtype": values.dtype.name, "crs": "EPSG:32632"}
    profile |= {"transform": Affine(10, 0, 500_000, 0, -10, 5_000_000), **changes}
    with rasterio.open(path, "w", count=len(values), height=values.shape[1], width=values.shape[2], **profile) as file:
        file.write(values)
    return path


def run(path: Path, model: Any, plan: Any, batch_size: int, finished: Any = ()) -> tuple[list[np.ndarray], np.ndarray]:
    """Return each layer, and how often each row was written."""
    height, width = plan.rows.length, plan.columns.length
    layers = [np.full((len(layer.descriptions), height, width), 77, layer.dtype) for layer in model.layers]
    times = np.zeros(height, int)

    def write(first: int, arrays: list[np.ndarray]) -> None:
        times[first : first + arrays[0].shape[1]] += 1
        for layer, array in zip(layers, arrays, strict=True):
            layer[:, first : first + array.shape[1]] = array

    source = Source(path, TWO_BANDS)
    source.keep_rows(plan.window[0])
    Streamer(model, {"OWN": source}, plan, batch_size).run(plan.blocks(batch_size), finished, write)
    source.close()
    return layers, times


@st.composite
def scenes(draw: Any) -> dict[str, Any]:
    align = draw(st.sampled_from([1, 8]))
    crop = 8 * draw(st.integers(2, 24))
    margin = draw(st.integers(0, crop // 4 - align // 8))
    return {
        "shape": (draw(st.integers(1, 600)), draw(st.integers(1, 600))),
        "crop": crop,
        # Not too short: each example should run in a moment.
        "stride": max(align, (crop - 2 * margin) * draw(st.integers(6, 10)) // 10 // align * align),
        "margin": margin,
        "align": align,
        "batch_size": draw(st.integers(1, 9)),
        "gaps": draw(st.lists(st.tuples(*[st.floats(0, 1)] * 4, st.integers(0, 2)), max_size=4)),
        "nan": draw(st.booleans()),
        "seed": draw(st.integers(0, 5)),
    }


def _make(scene: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return values with gaps, which are NaN, values with gaps filled, and where some band has data."""
    height, width = scene["shape"]
    values = np.random.default_rng(scene["seed"]).normal(size=(2, height, width)).astype(np.float32)
    for top, left, tall, wide, band in scene["gaps"]:
        rows = slice(int(top * height), int(top * height) + 1 + int(tall * height))
        columns = slice(int(left * width), int(left * width) + 1 + int(wide * width))
        values[band if band < 2 else slice(None), rows, columns] = np.nan
    filled = np.where(np.isnan(values), np.float32(TWO_BANDS.fill)[:, None, None], values)
    return values, filled, ~np.isnan(values).all(axis=0)


def _plan(scene: dict[str, Any]) -> Any:
    return plan_windows(
        *scene["shape"], scene["crop"], scene["stride"], scene["margin"], multiple=8, align=scene["align"]
    )


@settings(deadline=None, max_examples=60)
@given(scene=scenes())
def test_every_pixel_once(tmp_path_factory: pytest.TempPathFactory, scene: dict[str, Any]) -> None:
    values, filled, valid = _make(scene)
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    write_scene(path, values if scene["nan"] else np.nan_to_num(values, nan=GAP), nodata=None if scene["nan"] else GAP)
    (same, square), times = run(path, Pixelwise(), _plan(scene), scene["batch_size"])
    assert (times == 1).all()
    np.testing.assert_allclose(same, np.where(valid, filled, np.nan), atol=1e-5)
    np.testing.assert_allclose(square[0], np.where(valid, filled[0] ** 2, GAP), atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(scene=scenes(), data=st.data())
def test_resumed_and_in_parts_the_bytes_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, scene: dict[str, Any], data: Any
) -> None:
    path = write_scene(tmp_path_factory.mktemp("scene") / "scene.tif", _make(scene)[0])
    plan = _plan(scene)
    (whole,), _ = run(path, Mean(), plan, scene["batch_size"])
    bands = plan.blocks(scene["batch_size"])
    done = data.draw(st.sets(st.sampled_from(bands)))
    (rest,), times = run(path, Mean(), plan, scene["batch_size"], [(band.first, band.last) for band in done])
    for band in bands:
        assert (times[band.first : band.last] == (band not in done)).all()
        if band not in done:
            assert rest[:, band.first : band.last].tobytes() == whole[:, band.first : band.last].tobytes()


def test_a_gap_changes_nothing_beyond_its_windows(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(2, 200, 200)).astype(np.float32)
    plan = plan_windows(200, 200, 64, 48, 4)
    (before,), _ = run(write_scene(tmp_path / "a.tif", values), Mean(), plan, 4)
    values[:, 100, 20] = np.nan
    (after,), _ = run(write_scene(tmp_path / "b.tif", values), Mean(), plan, 4)
    changed = np.argwhere((before != after)[0])
    assert np.isnan(after[0]).sum() == 1
    # Windows of rows 48 and 96 and of column 0 hold the pixel.
    assert changed[:, 0].min() >= 52
    assert changed[:, 0].max() < 156
    assert changed[:, 1].max() < 60


def test_overlaps_change_smoothly(tmp_path: Path) -> None:
    """Where windows disagree the result goes from one to the other without a jump."""
    values = np.zeros((2, 64, 400), np.float32)
    values[:, :, 200:] = 1
    (mean,), _ = run(write_scene(tmp_path / "a.tif", values), Mean(), plan_windows(64, 400, 64, 32), 4)
    assert np.abs(np.diff(mean[0, 0])).max() < 0.06
    assert mean[0, 0, 0] == 0
    assert mean[0, 0, -1] == 1


def test_windows_without_data_are_not_computed(tmp_path: Path) -> None:
    values = np.full((2, 100, 300), np.nan, np.float32)
    values[:, 10:20, 250:260] = 1
    seen: list[Any] = []

    class Watched(Pixelwise):
        def __call__(self, images: Any, corners: Any) -> Tensor:
            seen.extend(corners)
            return super().__call__(images, corners)

    (same, _), times = run(write_scene(tmp_path / "a.tif", values), Watched(), plan_windows(100, 300, 50, 50), 4)
    assert seen == [(0, 250)]
    assert (times == 1).all()
    np.testing.assert_array_equal(same, values)


def test_memory_does_not_depend_on_height() -> None:
    from terramind_plugin.inference.blend import RollingBlend

    rows = []
    for height in (2000, 20000):
        plan = plan_windows(height, 500, 224, 192, 8)
        rows.append(RollingBlend(plan, plan.blocks(1), 1).values.shape[1])
    assert rows[0] == rows[1] < 224


def test_errors_of_the_reading_thread_are_raised() -> None:
    def items() -> Any:
        yield 1
        raise DataError("broken")

    with closing(ahead(items())) as taken:
        assert next(taken) == 1
        with pytest.raises(DataError, match="broken"):
            next(taken)


def test_the_reading_thread_ends_with_its_user() -> None:
    before = threading.active_count()
    with closing(ahead(itertools.count())) as taken:
        assert [next(taken) for _ in range(5)] == [0, 1, 2, 3, 4]
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_as_tiled_inference_where_both_blend_alike(tmp_path: Path) -> None:
    """TerraTorch adds 1e-6 to all weights, which shows at the edge of the image alone, where its weights are small."""
    from terratorch.tasks.tiled_inference import tiled_inference

    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(2, 8, 5, padding=2), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 5, padding=2)
    ).requires_grad_(False)

    class Network(Mean):
        def __call__(self, images: Any, corners: Any) -> Tensor:
            return network(images["OWN"])

    values = np.random.default_rng(0).normal(size=(2, 300, 350)).astype(np.float32)
    (ours,), _ = run(write_scene(tmp_path / "a.tif", values), Network(), plan_windows(300, 350, 112, 80), 4)
    x = torch.from_numpy(values)[None]
    theirs = tiled_inference(network, x, crop=112, stride=80, delta=0, padding=False, batch_size=4)[0].numpy()
    np.testing.assert_allclose(ours[:, 32:-32, 32:-32], theirs[:, 32:-32, 32:-32], atol=1e-5)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(1, 8))
def test_work_is_shared_out(bands: list[int], processes: int) -> None:
    units = plan_units(bands, processes)
    parts = max(1, -(-processes // len(bands)))
    assert len(units) == sum(min(count, parts) for count in bands)
    done = [(scene, band) for scene, first, last in units for band in range(first, last)]
    assert done == [(scene, band) for scene, count in enumerate(bands) for band in range(count)]


def test_a_forked_process_reads_after_its_parent(tmp_path: Path) -> None:
    """The threads that decode blocks do not survive a fork, and who waits for them waits forever."""
    tiles = {"tiled": True, "blockxsize": 32, "blockysize": 32, "compress": "deflate"}
    scene = write_scene(tmp_path / "scene.tif", np.random.rand(2, 128, 128).astype(np.float32), **tiles)
    options = Options(tmp_path, crop=64, stride=64, margin=0)
    (job,) = plan_jobs([{"OWN": scene}], {"OWN": TWO_BANDS}, options, 1)

    def read() -> None:
        with job.open() as sources:
            sources["OWN"].keep_rows(64)
            assert sources["OWN"].read(0, 0, 64, 128).valid.all()

    read()
    child = multiprocessing.get_context("fork").Process(target=read)
    child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0
