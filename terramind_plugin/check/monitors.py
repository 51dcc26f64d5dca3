"""Whether what callbacks and schedulers monitor is ever logged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torchmetrics.wrappers import ClasswiseWrapper

from terramind_plugin.data.terratorch_internals import TerraTorchTask
from terramind_plugin.errors import suggest
from terramind_plugin.samples.checks.findings import Finding


def check_monitors(config: Mapping[str, Any], model: Any) -> Iterator[Finding]:
    """Yield monitors that a task of TerraTorch never logs while it trains.

    Args:
        config: The configuration.
        model: The task.
    """
    names = logged_names(model)
    if not names:
        return
    for where, monitor in _monitors(config):
        if monitor in (*names, "epoch", "step"):  # a checkpoint callback counts these itself
            continue
        shown = [name for name in names if name.startswith("val/")]
        hint = suggest(monitor, shown) or suggest(f"val/{monitor.rpartition('/')[2]}", shown)
        yield Finding(
            "yaml: monitor",
            "error",
            f"{where} monitors '{monitor}', which is never logged.",
            hint.strip() or f"Logged are {', '.join(shown)}.",
        )


def logged_names(model: Any) -> list[str]:
    """Return the names of what a task of TerraTorch logs in training and validation; none if that is not known.

    Args:
        model: The task.
    """
    names: list[str] = []
    if not isinstance(model, TerraTorchTask):  # object detection and others log under names of their own
        return names
    # Further heads log losses under names of their own.
    if (getattr(model, "hparams", {}).get("model_args") or {}).get("aux_decoders"):
        return names
    for split in ("val", "train"):
        metrics: Any = getattr(model, f"{split}_metrics", None)
        if metrics is None:
            return []
        prefix = metrics.prefix or ""
        names += [f"{prefix}{name}" for name in ("loss", *getattr(getattr(model, "criterion", None), "losses", {}))]
        for name, metric in metrics.items(keep_base=True):
            if isinstance(metric, ClasswiseWrapper):
                count = getattr(metric.metric, "num_classes", None) or getattr(metric.metric, "num_labels", None) or 0
                labels = metric.labels or range(count)
                names += [f"{prefix}{metric._prefix or ''}{label}" for label in labels]
            else:
                names.append(f"{prefix}{name}")
    return names


def _monitors(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield who monitors, and what."""
    places = (config.get("trainer") or {}).get("callbacks") or []
    found = [
        (str(place.get("class_path", "")).rpartition(".")[2], (place.get("init_args") or {}).get("monitor"))
        for place in (places if isinstance(places, list) else [places])
        if isinstance(place, Mapping)
    ]
    scheduler = config.get("lr_scheduler") or {}
    if isinstance(scheduler, Mapping):
        found.append(("lr_scheduler", scheduler.get("monitor") or (scheduler.get("init_args") or {}).get("monitor")))
    yield from ((where, monitor) for where, monitor in found if isinstance(monitor, str))
