"""Figures of one number for each pixel, and of boxes."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from terramind_plugin.integration.drawing import plot_boxes, plot_values
from terramind_plugin.plotting.pictures import NO_VALUE

OPTICAL = np.random.default_rng(0).uniform(300, 3000, (13, 20, 24)).astype(np.float32)


def _panels(figure: Figure) -> dict[str, np.ndarray]:
    return {axis.get_title(): axis.images[0].get_array() for axis in figure.axes if axis.images}


def test_label_and_prediction_of_a_regression_share_a_scale() -> None:
    label = np.linspace(0, 100, 480, dtype=np.float32).reshape(20, 24)
    label[0] = np.nan
    figure = plot_values({"S2L1C": OPTICAL}, label, torch.from_numpy(label + 1000), "a", "t/ha")
    figure.canvas.draw()
    panels = _panels(figure)
    assert list(panels) == ["S2L1C", "label", "prediction"]
    assert np.allclose(panels["label"][0], to_rgb(NO_VALUE))
    assert np.allclose(panels["prediction"][1:], panels["label"][-1, -1])  # all of it beyond the label's range
    (bar,) = [axis for axis in figure.axes if not axis.images]
    assert bar.get_ylabel() == "t/ha"
    low, high = bar.get_ylim()
    assert 4 < low < 10
    assert 95 < high < 100


def test_each_variable_has_a_scale() -> None:
    label = np.random.default_rng(0).uniform(size=(2, 20, 24)).astype(np.float32) * np.array([[[1]], [[1000]]])
    figure = plot_values({"S2L1C": OPTICAL}, label, torch.from_numpy(label).bfloat16())
    figure.canvas.draw()
    assert list(_panels(figure)) == ["S2L1C", "label 1", "prediction 1", "label 2", "prediction 2"]
    tops = [axis.get_ylim()[1] for axis in figure.axes if not axis.images]
    assert tops[0] < 1 < 900 < tops[1]


@settings(max_examples=20, deadline=None)
@given(
    arrays.arrays(np.float32, (2, 4, 5), elements=st.floats(width=32, allow_nan=True, allow_infinity=True)),
    st.sampled_from([slice(None), slice(1), slice(0)]),
)
def test_any_values_of_a_regression_can_be_drawn(values: np.ndarray, empty: slice) -> None:
    label, prediction = values
    label[empty] = np.nan
    with np.errstate(all="ignore"):
        panels = _panels(plot_values({"DEM": prediction[None]}, label, prediction))
    assert all(np.isfinite(picture).all() for picture in panels.values())


def test_boxes_lie_around_their_pixels() -> None:
    label = (torch.tensor([[2.0, 4.0, 10.0, 12.0]]), torch.tensor([1]))
    none = (torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    figure = plot_boxes({"S2L1C": OPTICAL}, label, none, ["background", "pond"], "a")
    _, truth, prediction = figure.axes
    (box,) = truth.patches
    assert box.get_bbox().extents.tolist() == [1.5, 3.5, 9.5, 11.5]
    assert not prediction.patches
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["pond"]
    assert not plot_boxes({"S2L1C": OPTICAL}, none, none).legends
