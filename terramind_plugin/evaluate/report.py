"""The results of a comparison as a table and as a figure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from terramind_plugin.errors import ConfigError, suggest
from terramind_plugin.evaluate.arms import ARMS

MIB = 2**20


@dataclass(frozen=True)
class Summary:
    """One arm; of each figure one value for each seed."""

    arm: str
    metric: list[float]
    fit_seconds: list[float]
    last_epoch_seconds: list[float]
    """Training part of the last epoch, when memos are warm."""
    peak_mib: list[float]
    trained_parameters: int
    checkpoint_mib: float


def summarise(results: Sequence[Mapping[str, Any]], metric: str) -> list[Summary]:
    """Return a summary of each arm, in their order.

    Args:
        results: As `compare` returns them.
        metric: Name of a metric of the test.

    Raises:
        ConfigError: The test has no such metric.
    """
    summaries = []
    for arm in dict.fromkeys(result["arm"] for result in results):
        own = [result for result in results if result["arm"] == arm]
        for result in own:
            if metric not in result["metrics"]:
                known = sorted(result["metrics"])
                raise ConfigError(f"The test has no metric '{metric}'.{suggest(metric, known)} It has: {known}.")
        summaries.append(
            Summary(
                arm,
                [result["metrics"][metric] for result in own],
                [result["fit_seconds"] for result in own],
                [result["epoch_seconds"][-1] for result in own if result["epoch_seconds"]],
                [result["peak_bytes"] / MIB for result in own],
                own[0]["trained_parameters"],
                own[0]["checkpoint_bytes"] / MIB,
            )
        )
    return summaries


def spread(values: Sequence[float], digits: int) -> str:
    """Return 'mean ± standard deviation', or the mean of a single value."""
    if not values:
        return "-"
    text = f"{statistics.fmean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def table(summaries: Sequence[Summary], metric: str) -> list[list[str]]:
    """Return head and rows."""
    head = ["arm", metric, "fit, s", "last epoch, s", "peak memory, MiB", "trained, M", "checkpoint, MiB"]
    rows = [
        [
            one.arm,
            spread(one.metric, 3),
            spread(one.fit_seconds, 1),
            spread(one.last_epoch_seconds, 2),
            spread(one.peak_mib, 0),
            f"{one.trained_parameters / 1e6:.2f}",
            f"{one.checkpoint_mib:.1f}",
        ]
        for one in summaries
    ]
    return [head, *rows]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table with its head in the first row."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in [rows[0], rule, *rows[1:]])


def draw(summaries: Sequence[Summary], metric: str, title: str) -> Figure:
    """Return a figure: the metric over wall time and over peak memory, each seed a dot and each arm a cross."""
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, 2, sharey=True)
    for number, one in enumerate(summaries):
        color = f"C{number % 10}"
        for axis, values in zip(panels, (one.fit_seconds, one.peak_mib), strict=True):
            axis.scatter(values, one.metric, s=14, color=color, alpha=0.5, linewidths=0)
            x, y = statistics.fmean(values), statistics.fmean(one.metric)
            several = len(values) > 1
            axis.errorbar(
                x,
                y,
                xerr=statistics.stdev(values) if several else None,
                yerr=statistics.stdev(one.metric) if several else None,
                color=color,
                marker="o",
                markersize=7,
                capsize=3,
                label=f"{one.arm}: {ARMS[one.arm]}",
            )
            axis.annotate(one.arm, (x, y), xytext=(6, 6), textcoords="offset points", fontsize=8, color=color)
    panels[0].set_xlabel("wall time of the fit, s")
    panels[1].set_xlabel("peak memory, MiB")
    panels[0].set_ylabel(metric)
    for axis in panels:
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure
