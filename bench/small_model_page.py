"""The results page: tables in Markdown, all numbers as JSON, pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from bench.small_model import FEATURES, STEPS, TASKS, LandCover, Located, Results
from terramind_plugin.evaluate.locate_report import draw_errors, remark_on_coasts
from terramind_plugin.evaluate.output import markdown
from terramind_plugin.evaluate.scores import Score
from terramind_plugin.evaluate.zero_shot import LAND_COVER
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.plotting.panels import draw_panels
from terramind_plugin.plotting.pictures import RADAR_KEY, class_picture, modality_picture

PAGE, FOLDER = "RESULTS.md", "results"
NUMBERS = "results.json"
COVER, AGAIN, PLACES = "land_cover.png", "reconstructions.png", "places.png"
CHIPS = 5
"""Chips that are drawn, at equal steps of the amount of water."""


def pictures(results: Results, title: str) -> dict[str, Figure]:
    """Return the figures of the page by file name.

    Args:
        results: What was measured.
        title: Name of the model and its weights.
    """
    located = results.places["model"]
    remark = remark_on_coasts(title.partition(",")[0])
    return {
        COVER: draw_land_cover(results, title),
        AGAIN: draw_reconstructions(results, title),
        PLACES: draw_errors(located.true, located.middles, located.errors, f"{title}, from {FEATURES}{remark}"),
    }


def draw_land_cover(results: Results, title: str) -> Figure:
    """Return a figure of some chips: inputs, true land cover, and what was generated from each input."""
    world, made = results.world, results.land_cover["model"]
    order = np.argsort(world.water.mean(axis=(1, 2)), kind="stable")
    chosen = order[np.linspace(len(order) - 1, 0, min(CHIPS, len(order))).round().astype(int)]
    colors = MODALITIES[LAND_COVER].class_colors
    true = world.stack(LAND_COVER)[:, 0]
    rows = []
    for number in map(int, chosen):
        pictures = {name: _picture(results, name, number) for name in ("S2L2A", "S1GRD")}
        pictures[f"{LAND_COVER} (true)"] = class_picture(true[number], colors)
        pictures |= {f"from {' + '.join(one.inputs)}": class_picture(one.maps[number], colors) for one in made}
        rows.append((world.names[number], pictures))
    return draw_panels(rows, _legend(), title, side=2.1)


def draw_reconstructions(results: Results, title: str) -> Figure:
    """Return a figure of the first chip's modalities, and of what their tokenizers make of them."""
    made = results.tokenizers
    rows = [
        ("simulated", {one.modality: _picture(results, one.modality, 0) for one in made}),
        ("encoded and decoded", {one.modality: modality_picture(one.example, one.modality) for one in made}),
    ]
    return draw_panels(rows, _legend(), f"{results.world.names[0]}: {title}", side=2.3)


def _picture(results: Results, modality: str, number: int) -> NDArray:
    chip = results.world.images[modality][number]
    return modality_picture(chip.measured(), modality)


def _legend() -> list[tuple[str, str]]:
    entry = MODALITIES[LAND_COVER]
    return [*list(zip(entry.class_names, entry.class_colors, strict=True))[1:], *RADAR_KEY]


def record(results: Results, described: Mapping[str, Any]) -> dict[str, Any]:
    """Return all numbers for a JSON file.

    Args:
        results: What was measured.
        described: Model, weights, data, versions.
    """
    return {
        **described,
        "chips": len(results.world.names),
        "tokenizers": {
            one.modality: {
                "quality": round(one.quality, 4),
                "baseline": round(one.baseline, 4),
                "used": one.used,
                "vocabulary": one.vocabulary,
                "perplexity": round(one.perplexity, 2),
            }
            for one in results.tokenizers
        },
        "land_cover": {
            name: [
                {"inputs": list(one.inputs), "mean_iou": one.agreement.record(), "water_iou": one.water.record()}
                for one in rows
            ]
            for name, rows in results.land_cover.items()
        },
        "median_error_km": {
            name: {one.name: one.median.record() for one in located.errors} for name, located in results.places.items()
        },
        "few_shot": {
            name: {f"{task.ways}-way {task.shots}-shot": one.record() for task, one in zip(TASKS, scores, strict=True)}
            for name, scores in results.few_shot.items()
        },
    }


def write_page(results: Results, described: Mapping[str, Any]) -> str:
    """Return the page in Markdown.

    Args:
        results: What was measured.
        described: As in `record`.
    """
    parts = [
        f"# Results of {described['model']}\n\n"
        f"`make results` has measured these numbers on {len(results.world.names)} simulated chips that were not used "
        f"for training (`{described['data']}`); weights: {described['weights']}. Intervals are 95 % confidence "
        "intervals over chips or episodes. Simulated chips are not the Earth: these results say nothing about real "
        "images.\n\n"
        f"All numbers: [{NUMBERS}]({FOLDER}/{NUMBERS}).\n",
        _tokenizer_part(results),
        _cover_part(results.land_cover),
        _places_part(results.places),
        _few_shot_part(results.few_shot),
    ]
    return "\n".join(parts)


def _tokenizer_part(results: Results) -> str:
    head = ["modality", "reconstructed", "baseline", "token ids used", "perplexity"]
    rows = []
    for one in results.tokenizers:
        show: Callable[[float], str] = (
            (lambda value: f"{100 * value:.1f} %")
            if MODALITIES[one.modality].kind == "classes"
            else (lambda value: f"{value:.1f} dB")
        )
        used = f"{one.used} of {one.vocabulary}"
        rows.append([one.modality, show(one.quality), show(one.baseline), used, f"{one.perplexity:.0f}"])
    return (
        f"## Tokenizers\n\nPSNR after encoding and decoding in {STEPS} steps, mean over bands; the baseline is the "
        "mean of each band. For land cover: the share of right pixels; the baseline is the most frequent class. "
        f"Perplexity is the effective number of token ids in use.\n\n{markdown([head, *rows])}\n![reconstructions]"
        f"({FOLDER}/{AGAIN})\n"
    )


def _cover_part(cover: Mapping[str, Sequence[LandCover]]) -> str:
    head = ["from", "mean IoU", "random weights", "water IoU", "random weights"]
    rows = [
        [
            " + ".join(one.inputs),
            str(one.agreement),
            f"{random.agreement.value:.3f}",
            str(one.water),
            f"{random.water.value:.3f}",
        ]
        for one, random in zip(cover["model"], cover["random weights"], strict=True)
    ]
    most = cover["most frequent class"][0]
    rows.append([f"all {most.inputs[0]}", f"{most.agreement.value:.3f}", "", f"{most.water.value:.3f}", ""])
    return (
        "## Land cover and zero-shot water\n\nGenerated and true land cover compared: mean IoU of the classes that "
        "occur. Water stands for water and flooded vegetation, compared with the flood labels. The last row is a map "
        f"of the most frequent class alone.\n\n{markdown([head, *rows])}\n![land cover]({FOLDER}/{COVER})\n"
    )


def _places_part(located: Mapping[str, Located]) -> str:
    head = ["", "median error, km", "95 % interval"]
    rows = []
    for weights, one in located.items():
        for errors in one.errors:
            constant = errors.name.startswith("one place")
            if constant and weights != "model":
                continue
            low, high = errors.median.interval
            name = errors.name if constant else f"{errors.name}, {weights}"
            rows.append([name, f"{errors.median.value:.0f}", f"{low:.0f} to {high:.0f}"])
    return (
        f"## Locations\n\nCoordinates generated from {FEATURES}, on the model's grid. The baseline is the single "
        "location that is best for all of these chips.\n\n"
        f"{markdown([head, *rows])}\n![locations]({FOLDER}/{PLACES})\n"
    )


def _few_shot_part(scores: Mapping[str, Sequence[Score]]) -> str:
    head = ["features", *(f"{task.ways}-way {task.shots}-shot, %" for task in TASKS)]
    rows = [
        [name, *(f"{100 * one.value:.1f} ± {50 * (one.interval[1] - one.interval[0]):.1f}" for one in own)]
        for name, own in scores.items()
    ]
    return (
        f"## Few-shot\n\nBiomes predicted from the nearest class mean of {FEATURES} features, {TASKS[0].episodes} "
        f"episodes with {TASKS[0].queries} queries per class; chance is {100 / TASKS[0].ways:.0f} %.\n\n"
        f"{markdown([head, *rows])}"
    )
