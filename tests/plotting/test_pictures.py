"""Pictures: what is drawn, and that nothing odd in the data stops a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from terramind_plugin.errors import ConfigError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.plotting.pictures import (
    LABEL_COLORS,
    MIDDLE,
    class_picture,
    modality_picture,
    plot_modality,
    plot_samples,
    stretch,
)


def _values(modality: str, size: tuple[int, int] = (20, 24)) -> np.ndarray:
    entry = MODALITIES[modality]
    noise = np.random.default_rng(0).normal(size=(len(entry.bands), *size))
    if entry.kind == "classes":
        return np.abs(noise * 4).astype(np.uint8) % 10
    return (noise * np.array(entry.std)[:, None, None] + np.array(entry.mean)[:, None, None]).astype(np.float32)


IMAGES = [name for name, entry in MODALITIES.items() if entry.bands]


@pytest.mark.parametrize("modality", IMAGES)
@pytest.mark.parametrize("damage", ["none", "some", "all", "infinite"])
def test_every_modality_becomes_a_picture(modality: str, damage: str) -> None:
    values = _values(modality)
    if damage != "none" and values.dtype.kind == "f":
        values[:, : None if damage == "all" else 5] = np.inf if damage == "infinite" else np.nan
    picture = modality_picture(torch.from_numpy(values), modality)
    assert picture.shape == (20, 24, 3)
    assert np.isfinite(picture).all()
    assert picture.min() >= 0
    assert picture.max() <= 1


@settings(max_examples=60, deadline=None)
@given(arrays.arrays(np.float32, (6, 5, 3), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)))
def test_any_values_can_be_stretched(image: np.ndarray) -> None:
    with np.errstate(all="ignore"):
        result = stretch(image)
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1


def test_clouds_do_not_turn_the_rest_black() -> None:
    image = np.random.default_rng(0).uniform(400, 900, (40, 40, 3))
    image[:10] = 9000
    land = stretch(image)[10:]
    assert np.median(land) > 0.2
    assert np.median(stretch(image)) == pytest.approx(MIDDLE, abs=0.02)


def test_a_bright_image_is_not_changed_further() -> None:
    ramp = np.linspace(0, 1, 1001)[:, None, None].repeat(3, axis=-1)
    assert np.median(stretch(ramp)) == pytest.approx(0.5, abs=0.01)


def test_optical_is_drawn_in_natural_colours() -> None:
    values = np.zeros((13, 4, 4), np.float32)
    values[3, 0, 0], values[2, 1, 1], values[1, 2, 2] = 5000, 5000, 5000
    picture = modality_picture(values, "S2L1C")
    assert [tuple(picture[i, i].round()) for i in range(3)] == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    selected = modality_picture(values[[1, 2, 3]], "S2L1C", ["BLUE", "GREEN", "RED"])
    assert np.allclose(selected, picture)
    grey = modality_picture(values[[7]], "S2L1C", ["NIR_BROAD"])
    assert np.allclose(grey[..., 0], grey[..., 2])


def test_an_unknown_modality_is_drawn_as_it_comes() -> None:
    assert modality_picture(np.random.rand(1, 4, 4), "THERMAL").shape == (4, 4, 3)
    assert modality_picture(np.random.rand(2, 4, 4), "THERMAL").shape == (4, 4, 3)
    assert modality_picture(np.random.rand(5, 4, 4), "THERMAL").shape == (4, 4, 3)


def test_classes_keep_their_colours() -> None:
    picture = class_picture(np.array([[0, 1], [-1, 255]]), LABEL_COLORS[:2])
    assert tuple(picture[0, 1]) == to_rgb(LABEL_COLORS[1])
    assert picture[1].max() == 0


def _plot(images: dict, label: Any = None, prediction: Any = None, names: Any = None, title: str = "") -> Figure:
    return plot_samples([(title, images, label, prediction)], names)


def _row(name: str, modalities: tuple[str, ...], *, label: bool = True, prediction: bool = True) -> tuple:
    ids = np.zeros((20, 24), np.int16)
    ids[0] = -1
    images = {modality: _values(modality) for modality in modalities}
    return name, images, ids if label else None, torch.from_numpy(ids) if prediction else None


def test_titles_once_and_columns_by_name() -> None:
    rows = [_row("a", ("S1GRD",), prediction=False), _row("b", ("S2L1C", "S1GRD")), _row("c", ("S2L1C",), label=False)]
    figure = plot_samples(rows, ["Land", "Water"])
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:4] == ["S1GRD", "S2L1C", "label", "prediction"]
    assert set(titles[4:]) == {""}
    drawn = [len(axis.images) for axis in figure.axes]
    assert drawn == [1, 0, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1]
    assert [axis.texts[0].get_text() for axis in figure.axes[::4]] == ["a", "b", "c"]


def test_the_legend_names_the_classes() -> None:
    figure = _plot(*_row("a", ("S2L1C",))[1:], ["Land", "Water"])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Land", "Water", "no data"]
    assert not _plot({"S2L1C": _values("S2L1C")}).legends


@pytest.mark.parametrize("label", [np.full((20, 24), -1), np.full((20, 24), 255), np.full((20, 24), np.nan), None])
def test_labels_without_any_class(label: np.ndarray | None) -> None:
    _plot({"S2L1C": _values("S2L1C")}, label, np.ones((20, 24), np.uint8)).canvas.draw()


def test_without_names_classes_are_counted() -> None:
    label = np.array([[0, 3], [255, -1]])
    figure = _plot({"S2L1C": _values("S2L1C", (2, 2))}, label)
    assert len(figure.legends[0].get_texts()) == 5


def test_a_modality_by_name_and_data_in_either_order() -> None:
    axes = Figure().subplots(1, 2)
    for axis, arguments in zip(axes, [("DEM", _values("DEM")), (_values("DEM"), "DEM")], strict=True):
        assert plot_modality(*arguments, axis).get_title() == "DEM"
    first, second = (axis.images[0].get_array() for axis in axes)
    assert np.array_equal(first, second)
    with pytest.raises(ConfigError, match="the name of a modality and data"):
        plot_modality(_values("DEM"), _values("DEM"))


def _panels(figure: Figure) -> list[str]:
    return [axis.get_title() for axis in figure.axes if axis.images]


def test_of_many_dates_the_first_and_the_last_are_drawn() -> None:
    images = torch.from_numpy(np.stack([_values("S2L1C")] * 12, axis=1))
    assert _panels(_plot({"S2L1C": images})) == ["S2L1C, date 1", "S2L1C, date 12"]
    assert _panels(_plot({"S2L1C": images[:, :1]})) == ["S2L1C, date 1"]


def test_long_titles_are_broken() -> None:
    names = ", ".join(f"class number {number}" for number in range(40))
    figure = _plot({"S2L1C": _values("S2L1C")}, title=f"chip\nlabel: {names}")
    lines = figure.axes[0].texts[0].get_text().splitlines()
    assert lines[0] == "chip"
    assert max(map(len, lines)) <= 50


@pytest.mark.parametrize("length", [12, 60])
def test_all_of_a_long_legend_is_seen(length: int) -> None:
    names = [f"class {number} ".ljust(length, "x") for number in range(19)]
    label = np.zeros((20, 24), np.int16)
    figure = _plot({"S2L1C": _values("S2L1C")}, label, label, names, "chip")
    figure.draw_without_rendering()
    legend, title = figure.legends[0].get_window_extent(), figure.axes[0].texts[0].get_window_extent()
    assert legend.y0 >= 0
    assert legend.y1 <= title.y0
    assert figure.axes[0].get_position().height * figure.bbox.height > 200


def test_names_are_no_formulas() -> None:
    label = np.zeros((20, 24), np.int16)
    _plot({"S2L1C": _values("S2L1C")}, label, None, [r"$\frac$", "b"], r"$\frac$").canvas.draw()
