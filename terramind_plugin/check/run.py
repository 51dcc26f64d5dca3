"""All checks of a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from terramind_plugin.check.build import (
    Built,
    build,
    check_cache,
    check_disk,
    check_monitors,
    check_vocabulary,
    grid_of,
)
from terramind_plugin.check.config import check_interval
from terramind_plugin.check.pretraining_ground import MeshCentres, check_pretraining_ground, read_centres
from terramind_plugin.check.process import Attempt
from terramind_plugin.check.sheet import draw_sheet
from terramind_plugin.check.step import STEP_CHECK, not_tried
from terramind_plugin.data.dates import dates_taken
from terramind_plugin.errors import one_line
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.samples.checks.run import check_data
from terramind_plugin.samples.plan import DataPlan, describe_data
from terramind_plugin.system.files import check_picture

UNBUILT = ("yaml: data", "yaml: model")
"""Checks that report a part that cannot be built."""
UNTRIED = ("yaml: parsing", "yaml: weights", "yaml: batch size", "yaml: validation")
"""Checks of keys that the step does not use. A working step disproves errors of other keys."""


def check(
    config: Path,
    overrides: list[str],
    samples: int = 64,
    timed: bool = False,
    sheet: Path | None = None,
    *,
    step: bool = False,
    fresh: bool = False,
    terramesh: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> list[Finding]:
    """Return all findings, good and bad.

    Args:
        config: The YAML file.
        overrides: Further options, as for terramind fit, e.g. ["--trainer.max_epochs=3"].
        samples: Maximum number of samples whose pixels are read.
        timed: Take a few training steps as they are configured, and measure them.
        sheet: Picture of the data to write.
        step: Take a training and a validation step with two samples.
        fresh: Whether this process has imported torch for this check alone and has not computed yet.
        terramesh: Metadata of TerraMesh; test chips on the ground of its samples are reported.
        say: Called with a text when a part of the check begins.

    Raises:
        ConfigError: The sheet cannot be written, another file has its name, or the metadata cannot be used.
        DataError: No sample can be drawn on the sheet.
    """
    check_picture(sheet)
    centres = None if terramesh is None else read_centres(terramesh)
    attempt, refused = None, []
    if step or timed:
        try:
            attempt = Attempt(config, overrides, timed=timed, fresh=fresh)
        except OSError as error:  # no room for a folder or a process
            refused.append(not_tried(f"{one_line(error)}."))
    try:
        say("reading the configuration, building data module and model")
        built = build(config, overrides)
        findings = [*built.findings, *_look(built, samples, sheet, say, centres), *refused]
        if attempt is not None and built.cli is not None:
            say(f"trying training and validation steps, for at most {attempt.seconds:.0f} s")
            findings = _combine(findings, attempt.finish())
    finally:
        if attempt is not None:
            attempt.stop()
    if not any(finding.check.startswith("yaml") for finding in findings):
        findings.insert(0, Finding("yaml", "ok", "parsed; data module and model built, without weights."))
    return findings


def _look(
    built: Built, samples: int, sheet: Path | None, say: Callable[[str], None], centres: MeshCentres | None
) -> Iterator[Finding]:
    """Yield the findings on a built configuration and its data, without training."""
    if built.model is not None:
        yield from check_monitors(built.config, built.model)
        yield from check_disk(built.config, built.model)
    yield from check_vocabulary(built.config, built.datamodule)
    if built.datamodule is None:
        return
    say("listing the samples")
    plan = describe_data(built.datamodule)
    if plan is not None and plan.batch_size > 0 and plan.chips_are_samples:
        train = sum(len(split.samples) for split in plan.splits if split.name == "train")
        samples_shown = train * int(getattr(built.datamodule, "train_repeats", 1))
        yield from check_interval(built.config.get("trainer") or {}, samples_shown, plan.batch_size, plan.drop_last)
    if hasattr(built.datamodule, "check_shards"):
        say("reading samples of the shards")
        yield from built.datamodule.check_shards(samples)
        return
    if plan is not None:
        yield from check_cache(built.datamodule, plan)
    yield from _data(built, plan, samples, say)
    if plan is not None and centres is not None:
        say("comparing the test chips with TerraMesh")
        yield from check_pretraining_ground(plan, centres)
    if hasattr(built.datamodule, "check_tokens"):
        say("comparing the stored tokens with the chips")
        yield from built.datamodule.check_tokens()
    if sheet is not None and plan is not None:
        say("drawing the sheet")
        draw_sheet(plan, sheet, samples)


def _combine(findings: list[Finding], tried: list[Finding]) -> list[Finding]:
    """Return the findings of the checks and of the step, without those that the step disproves or a check explains."""
    if any(finding.check == STEP_CHECK and finding.verdict == "ok" for finding in tried):
        kept = [finding for finding in findings if finding.check != "yaml: model"]
        return [_soften(finding) for finding in kept] + tried
    if any(finding.check in UNBUILT and finding.verdict == "error" for finding in findings):
        return findings + [finding for finding in tried if finding.verdict != "error"]
    return findings + tried


def _soften(finding: Finding) -> Finding:
    """Return an error in a key as a warning, since training works in spite of it."""
    if finding.verdict != "error" or not finding.check.startswith("yaml") or finding.check in UNTRIED:
        return finding
    return replace(finding, verdict="warning", seen=f"{finding.seen} Training works all the same.")


def _data(built: Built, plan: DataPlan | None, samples: int, say: Callable[[str], None]) -> Iterator[Finding]:
    if plan is None:
        yield Finding(
            "data",
            "note",
            f"{type(built.datamodule).__name__} is not known here: its files and values were not checked.",
            "Use terramind_plugin.TerraMindDataModule.",
        )
        return
    task = (built.config.get("model") or {}).get("init_args") or {}
    yield from check_data(
        plan,
        samples=samples,
        ignored=task.get("ignore_index"),
        loss=str(task.get("loss") or ""),
        weighted=bool(task.get("class_weights")),
        grid=grid_of(built.model),
        taken=dates_taken(built.model),
        say=say,
    )
