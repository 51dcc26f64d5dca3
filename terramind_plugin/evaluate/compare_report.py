"""Results of a comparison as a table and as a figure."""

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
class ArmSummary:
    """Results of one arm with one number of labels; lists have one value for each seed."""

    arm: str
    labels: int | None
    """Number of training samples; None for all."""
    seeds: list[int]
    metric: list[float]
    fit_seconds: list[float]
    last_epoch_seconds: list[float]
    """Seconds of the training part of the last epoch, when caches are filled."""
    peak_mib: list[float]
    trained_parameters: int
    checkpoint_mib: float


def summarise(results: Sequence[Mapping[str, Any]], metric: str) -> list[ArmSummary]:
    """Return a summary of each arm and number of labels, in their order.

    Args:
        results: Results of `compare`.
        metric: Name of a metric of the test.

    Raises:
        ConfigError: The test has no such metric.
    """
    summaries = []
    groups = dict.fromkeys((result["arm"], result.get("labels")) for result in results)
    for arm, labels in groups:
        own = [result for result in results if (result["arm"], result.get("labels")) == (arm, labels)]
        for result in own:
            if metric not in result["metrics"]:
                known = sorted(result["metrics"])
                raise ConfigError(f"The test has no metric '{metric}'.{suggest(metric, known)} It has: {known}.")
        summaries.append(
            ArmSummary(
                arm,
                labels,
                [result["seed"] for result in own],
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


def gain(one: ArmSummary, other: ArmSummary) -> str:
    """Return the mean difference between two arms over their common seeds, with its 95 % interval (Student's t).

    Runs are paired by seed, since both arms have the same samples with the same seed.
    """
    from scipy.stats import t

    theirs = dict(zip(other.seeds, other.metric, strict=True))
    pairs = zip(one.seeds, one.metric, strict=True)
    differences = [value - theirs[seed] for seed, value in pairs if seed in theirs]
    if one.arm == other.arm or not differences:
        return "-"
    text, count = f"{statistics.fmean(differences):+.3f}", len(differences)
    if count == 1:
        return text
    return f"{text} ± {t.ppf(0.975, count - 1) * statistics.stdev(differences) / count**0.5:.3f}"


def table(summaries: Sequence[ArmSummary], metric: str) -> list[list[str]]:
    """Return head and rows of the table, in which all arms are compared with the first one."""
    first = {one.labels: one for one in reversed(summaries)}
    several = len({one.arm for one in summaries}) > 1
    limited = any(one.labels is not None for one in summaries)
    head = ["arm", metric, "fit, s", "last epoch, s", "peak memory, MiB", "trained, M", "checkpoint, MiB"]
    if several:
        head.insert(2, f"over {summaries[0].arm} (95 %)")
    if limited:
        head.insert(0, "labels")
    rows = [
        [
            *(["all" if one.labels is None else str(one.labels)] if limited else []),
            one.arm,
            spread(one.metric, 3),
            *([gain(one, first[one.labels])] if several else []),
            spread(one.fit_seconds, 1),
            spread(one.last_epoch_seconds, 2),
            spread(one.peak_mib, 0),
            f"{one.trained_parameters / 1e6:.2f}",
            f"{one.checkpoint_mib:.1f}",
        ]
        for one in summaries
    ]
    return [head, *rows]


def draw(summaries: Sequence[ArmSummary], metric: str, title: str) -> Figure:
    """Return a figure: the metric over the number of labels if there are several, else over time and memory."""
    if len({one.labels for one in summaries}) > 1:
        return _draw_labels(summaries, metric, title)
    return _draw_costs(summaries, metric, title)


def _draw_labels(summaries: Sequence[ArmSummary], metric: str, title: str) -> Figure:
    """Return a figure: a line for each arm over the numbers of labels, each seed a dot."""
    arms = list(dict.fromkeys(one.arm for one in summaries))
    figure = Figure(figsize=(7, 4.2 + 0.2 * len(arms)), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axis = figure.subplots()
    budgets = list(dict.fromkeys(one.labels for one in summaries))
    for number, arm in enumerate(arms):
        own, color = [one for one in summaries if one.arm == arm], f"C{number % 10}"
        # Side by side, so that the spreads of two arms do not cover each other.
        positions = [budgets.index(one.labels) + 0.06 * number for one in own]
        for position, one in zip(positions, own, strict=True):
            axis.scatter([position] * len(one.metric), one.metric, s=14, color=color, alpha=0.5, linewidths=0)
        axis.errorbar(
            positions,
            [statistics.fmean(one.metric) for one in own],
            yerr=[statistics.stdev(one.metric) if len(one.metric) > 1 else 0.0 for one in own],
            color=color,
            marker="o",
            capsize=3,
            label=f"{arm}: {ARMS[arm]}",
        )
    axis.set_xticks(range(len(budgets)), ["all" if labels is None else str(labels) for labels in budgets])
    axis.set_xlabel("labelled chips")
    axis.margins(x=0.08)
    _set_metric_axis(axis, metric, summaries)
    figure.legend(loc="outside lower center", ncols=1, fontsize=8, frameon=False)
    return figure


def _draw_costs(summaries: Sequence[ArmSummary], metric: str, title: str) -> Figure:
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
    for axis, widest in zip(panels, (_widest(summaries, "fit_seconds"), _widest(summaries, "peak_mib")), strict=True):
        axis.set_xlim(0, 1.15 * widest)  # with room for the names at the right
        _set_metric_axis(axis, metric, summaries)
    panels[1].set_ylabel("")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def _widest(summaries: Sequence[ArmSummary], field: str) -> float:
    return max((float(value) for one in summaries for value in getattr(one, field)), default=1.0) or 1.0


def _set_metric_axis(axis: Any, metric: str, summaries: Sequence[ArmSummary]) -> None:
    """Make the axis of the metric start at 0, so that differences are in proportion, and include all points."""
    values = [value for one in summaries for value in one.metric]
    low, high = min([0.0, *values]), max([0.0, *values])
    axis.set_ylim(1.05 * low, 1.0 if 0 < high <= 1 else 1.05 * high or 1.0)
    axis.set_ylabel(f"{metric.removeprefix('test/')} of the test")
    axis.grid(alpha=0.3)
    for drawn in axis.collections:
        drawn.set_clip_on(False)
