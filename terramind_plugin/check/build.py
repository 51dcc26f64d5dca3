"""A configuration parsed and built as `terratorch fit` would, without reading weights."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.check.harmless import drop_weights
from terramind_plugin.check.keys import check_agreement, check_model_args, check_training
from terramind_plugin.errors import ConfigError, one_line
from terramind_plugin.files import read_yaml
from terramind_plugin.integration import causes, lightning_cli
from terramind_plugin.samples.checks.files import Grid
from terramind_plugin.samples.checks.findings import Finding


class ParsingCLI(lightning_cli.TerraMindCLI):
    """The command line that only parses."""

    def before_instantiate_classes(self) -> None:
        """Do nothing: weights are not looked at."""

    def instantiate_classes(self) -> None:
        """Do nothing."""


@dataclass
class Built:
    """What could be made of a configuration."""

    findings: list[Finding] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    datamodule: Any = None
    model: Any = None
    cli: Any = None
    """The parsed command line."""


def build(config: Path, words: list[str]) -> Built:
    """Return data module and model of a configuration, the model without weights, and what went wrong.

    Args:
        config: The YAML file.
        words: Further options, as for terramind fit.
    """
    built = Built()
    content = _read(config, built)
    if content is None:
        return built
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "LightningCLI's args parameter")
            cli = lightning_cli.make_cli(["--config", str(config), *words], kind=ParsingCLI)
    except Exception as error:  # whatever jsonargparse raises at a value of another type
        logging.getLogger("terramind_plugin").debug("Parsing failed", exc_info=True)
        built.findings.append(Finding("yaml: parsing", "error", causes.describe(error)))
        built.findings += _static(content)
        return built
    built.cli = cli
    built.config = cli.config.as_dict()
    odd = [part for part in ("trainer", "data", "model") if not isinstance(built.config.get(part), Mapping)]
    if odd:
        built.findings.append(Finding("yaml: parsing", "error", f"{odd[0]} is no mapping of keys to values."))
        return built
    built.findings += _static(built.config)
    drop_weights(cli.config)
    built.datamodule = _instantiate(cli, "data", built)
    broken = any(f.verdict == "error" for f in built.findings if f.check in ("yaml: keys", "yaml: layers"))
    if not broken:
        built.model = _build_model(cli, built)
    return built


def _build_model(cli: Any, built: Built) -> Any:
    """Return the task without memory for its weights, or with it if its builder looks at them."""
    trial = Built()
    with torch.device("meta"):
        model = _instantiate(cli, "model", trial)
    if any("meta tensor" in finding.seen for finding in trial.findings):
        return _instantiate(cli, "model", built)
    built.findings += trial.findings
    return model


def _read(config: Path, built: Built) -> dict[str, Any] | None:
    try:
        content = read_yaml(config)
    except ConfigError as error:
        built.findings.append(Finding("yaml: parsing", "error", one_line(error)))
        return None
    if not isinstance(content, dict):
        built.findings.append(Finding("yaml: parsing", "error", f"{config} is no mapping with data, model, trainer."))
        return None
    return content


def _static(config: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield what can be seen without building."""
    parts = {name: config.get(name) for name in ("data", "model", "trainer")}
    data, model = (
        (part.get("init_args") or {}) if isinstance(part, Mapping) else {} for part in (parts["data"], parts["model"])
    )
    if not isinstance(data, Mapping) or not isinstance(model, Mapping):
        return
    arguments = model.get("model_args")
    if isinstance(arguments, Mapping):
        yield from check_model_args(arguments, str(model.get("model_factory") or "EncoderDecoderFactory"))
        yield from check_agreement(data, model)
    if isinstance(parts["trainer"], Mapping | None):
        yield from check_training(config)


def grid_of(task: Any) -> Grid | None:
    """Return the sizes of images that a task's model takes, None if that is not known.

    Args:
        task: With a model of TerraTorch's factories, on any device.
    """
    model = getattr(task, "model", None)
    patch = getattr(model, "patch_size", None)
    if isinstance(patch, int) and patch > 0:
        return Grid(patch, getattr(model, "padding", None))
    own = next((part for part in model.modules() if isinstance(part, TerraMindBackbone)), None) if model else None
    return Grid(own.patch_size) if own is not None else None


def make_part(cli: Any, part: str) -> Any:
    """Return one part of a parsed configuration, without the others.

    Args:
        cli: The command line.
        part: 'data' or 'model'.
    """
    from jsonargparse import Namespace

    make = getattr(cli.parser, "instantiate", None) or cli.parser.instantiate_classes
    return make(Namespace({part: cli.config[part]}))[part]


def _instantiate(cli: Any, part: str, built: Built) -> Any:
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made = make_part(cli, part)
        # Albumentations leaves out arguments that it does not know.
        texts = {str(warning.message) for warning in caught}
        ignored = sorted(text for text in texts if "not valid for transform" in text)
        built.findings += [Finding(f"yaml: {part}", "error", f"{one_line(text)}.") for text in ignored]
        return made
    except Exception as error:  # whatever a library raises at a wrong argument
        built.findings.append(Finding(f"yaml: {part}", "error", causes.describe(error)))
        logging.getLogger("terramind_plugin").debug("Building %s failed", part, exc_info=True)
    return None
