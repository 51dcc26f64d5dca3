"""All checks of a configuration."""

from __future__ import annotations

from pathlib import Path

from terramind_plugin.check.build import Built, build, build_again
from terramind_plugin.check.disk import check_disk
from terramind_plugin.check.monitors import check_monitors
from terramind_plugin.check.sheet import draw_sheet
from terramind_plugin.check.step import check_step
from terramind_plugin.contract.findings import Finding
from terramind_plugin.contract.plan import DataPlan, describe
from terramind_plugin.contract.run import check_data
from terramind_plugin.files import check_picture


def check(
    config: Path, words: list[str], samples: int = 64, timed: bool = False, sheet: Path | None = None
) -> list[Finding]:
    """Return everything that was found, good and bad.

    Args:
        config: The YAML file.
        words: Further options, as for terramind fit.
        samples: How many samples to read pixels of, at most.
        timed: Also run a few training steps.
        sheet: Picture of the data to write.

    Raises:
        ConfigError: The picture cannot be written, or another file has its name.
        DataError: There is nothing to draw on it.
    """
    check_picture(sheet)
    built = build(config, words)
    findings = list(built.findings)
    if built.model is not None:
        findings += check_monitors(built.config, built.model)
        findings += check_disk(built.config, built.model)
    if built.datamodule is not None:
        plan = describe(built.datamodule)
        findings += _data(built, plan, samples)
        if sheet is not None and plan is not None:
            draw_sheet(plan, sheet, samples)
    if timed and built.model is not None and built.datamodule is not None:
        model = build_again(built)
        findings += [] if model is None else check_step(built.config, model, built.datamodule)
    if not any(finding.check.startswith("yaml") for finding in findings):
        findings.insert(0, Finding("yaml", "ok", "parsed; data module and model built, without weights."))
    return findings


def _data(built: Built, plan: DataPlan | None, samples: int) -> list[Finding]:
    if plan is None:
        return [
            Finding(
                "data",
                "note",
                f"{type(built.datamodule).__name__} is not known here: files and values were not looked at.",
                "Use terramind_plugin.TerraMindDataModule.",
            )
        ]
    task = (built.config.get("model") or {}).get("init_args") or {}
    return list(
        check_data(
            plan,
            samples=samples,
            ignored=task.get("ignore_index"),
            loss=str(task.get("loss") or ""),
            weighted=bool(task.get("class_weights")),
        )
    )
