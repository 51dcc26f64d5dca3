"""TerraTorch's command line with this package loaded."""

from __future__ import annotations

import io
import logging
import os
import re
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor
from torchgeo.trainers import BaseTask

import terramind_plugin
from terramind_plugin.backbones.arguments import FORMER_ARGUMENTS
from terramind_plugin.backbones.lora import BASE
from terramind_plugin.backbones.tim import GENERATOR_KEY
from terramind_plugin.data.classes import compare_class_names
from terramind_plugin.data.statistics import describe_statistics
from terramind_plugin.data.terratorch_internals import (
    CustomWriter,
    MyLightningCLI,
    MyTrainer,
    StudioDeploySaveConfigCallback,
)
from terramind_plugin.errors import ConfigError, DataError, WeightsError
from terramind_plugin.integration.causes import explain, readable
from terramind_plugin.integration.progress import replace_bars
from terramind_plugin.integration.quiet import silence_libraries
from terramind_plugin.model.checkpoints import check_types, model_args_of, read_file, settings_of, shorten
from terramind_plugin.system.files import check_aliases, write_bytes

logger = logging.getLogger("terramind_plugin")

RASTER_OPTIONS = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
"""GDAL option that avoids listing the folder of each opened file; TerraTorch sets the same."""

YAML_ENDINGS = (".yaml", ".yml", ".json")


class StatisticsTrainer(MyTrainer):  # type: ignore[misc]  # TerraTorch has no types
    """TerraTorch's trainer, whose statistics also cover several modalities."""

    def compute_statistics(self, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Print statistics of the training data as YAML for data.init_args."""
        if not hasattr(datamodule, "modalities"):
            super().compute_statistics(datamodule, **kwargs)
            return
        from terramind_plugin.data.datamodule import band_statistics

        print(describe_statistics(band_statistics(datamodule), getattr(datamodule, "bands_read", {})))


class WholeCheckpoints(TorchCheckpointIO):
    """Writer of checkpoints that get their name only when they are complete."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint to a local path; leave other places to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_bytes(Path(path), content.getbuffer())


class TerraMindCLI(MyLightningCLI):  # type: ignore[misc]
    """TerraTorch's CLI, in which the configuration takes precedence over the settings in a checkpoint.

    Args:
        ckpt_path: Checkpoint to load if no subcommand names one.
        kwargs: As for Lightning's CLI.
    """

    def __init__(self, *, ckpt_path: str | Path | None = None, **kwargs: Any) -> None:
        self.ckpt_path = ckpt_path
        self.stored: dict[str, Tensor] = {}
        """Weights in the checkpoint of the subcommand."""
        self._checkpoint: tuple[Mapping[str, Any], dict[str, Tensor]] = ({}, {})
        super().__init__(**kwargs)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Return the trainer, which writes complete checkpoints only."""
        trainer: Trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # not one that the user has chosen
            trainer.strategy.checkpoint_io = WholeCheckpoints()
        return trainer

    def before_instantiate_classes(self) -> None:
        """Read and check the checkpoint given as `ckpt_path`."""
        if self.ckpt_path is not None:
            self._checkpoint = check_checkpoint(self.config, self.ckpt_path)

    def take_checkpoint(self) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
        """Return the content of `ckpt_path` and its weights by name, at the first call only."""
        found, self._checkpoint = self._checkpoint, ({}, {})
        return found

    def _parse_ckpt_path(self) -> None:
        """Check that the checkpoint belongs to the configured model, and avoid loading weights that it replaces.

        Raises:
            ConfigError: The checkpoint belongs to another model.
            WeightsNotFoundError: There is no such file.
            WeightsError: The file cannot be read, is damaged, or is not a checkpoint of Lightning.
        """
        options = self.config.get(self.config.get("subcommand") or "", None)
        path = options.get("ckpt_path") if options is not None else None
        if not path or path in ("best", "last", "hpc", "registry"):
            return
        content, self.stored = check_checkpoint(options, path)
        for key, kind in (("state_dict", Mapping), ("pytorch-lightning_version", str)):
            if not isinstance(content.get(key), kind):
                raise WeightsError(
                    f"{path} is not a checkpoint of a run: it has no {key}. --ckpt_path needs a checkpoint of "
                    "`terramind fit`; published weights to start from are given as backbone_ckpt_path."
                )

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a subcommand.

        Raises:
            WeightsError: The checkpoint does not fit the model, or its training state is damaged.
        """
        path = self.config[subcommand].get("ckpt_path")
        replace_bars(self.trainer)
        if self.stored:
            check_types(self.model, self.stored, path)
            self.stored = {}
        try:
            super()._run_subcommand(subcommand)
        except (ConfigError, DataError, WeightsError):
            raise
        except Exception as error:
            if not _while_restoring(error):
                raise
            raise WeightsError(
                f"{path} cannot be restored ({type(error).__name__}): {shorten(error, 2000)} Use another checkpoint, "
                "or the configuration that this one was made with."
            ) from error


class ParsingCLI(TerraMindCLI):
    """A command line that parses a configuration and builds nothing by itself."""

    def before_instantiate_classes(self) -> None:
        """Do nothing: no checkpoint is read."""

    def instantiate_classes(self) -> None:
        """Do nothing."""

    def make_part(self, part: str) -> Any:
        """Build one part of the configuration, 'data' or 'model', without the others."""
        make = getattr(self.parser, "instantiate", None) or self.parser.instantiate_classes
        return make(Namespace({part: self.config[part]}))[part]  # type: ignore[no-untyped-call]


def _while_restoring(error: Exception) -> bool:
    """Return whether an error was raised while Lightning restored the state of a checkpoint."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return any(
        frame.f_code.co_name.lstrip("_").startswith(("restore", "resume"))
        and frame.f_globals.get("__name__", "").endswith("checkpoint_connector")
        for frame in frames
    )


def check_checkpoint(options: Any, path: str | Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Check that a checkpoint belongs to the configured model, and avoid loading weights that it replaces.

    Args:
        options: A parsed configuration, whose backbone_pretrained may be changed.
        path: The checkpoint.

    Returns:
        The content of the checkpoint, and its weights by name.

    Raises:
        ConfigError: The checkpoint belongs to another model.
        WeightsNotFoundError: There is no such file.
        WeightsError: The file cannot be read or is damaged.
    """
    content, tensors = read_file(path)
    _settle_class_names(options, content, str(path))
    stored = model_args_of(content, path)
    model_args = options.get("model.init_args.model_args")
    if isinstance(model_args, dict):
        _compare(model_args, stored, str(path))
        needs_base = any(name.endswith((BASE, GENERATOR_KEY)) for name in tensors)
        if model_args.get("backbone_pretrained") and not needs_base:
            model_args["backbone_pretrained"] = False
    return content, tensors


def _settle_class_names(options: Any, content: Mapping[str, Any], path: str) -> None:
    """Compare the configured class names with those of a checkpoint; if none are configured, use the latter.

    Raises:
        ConfigError: The names differ.
        WeightsError: The names in the checkpoint are not a list of texts.
    """
    kind = str(options.get("data.class_path") or "").rpartition(".")[2]
    parts = [settings_of(content, path), content.get(kind)]
    stored = next(
        (part["class_names"] for part in parts if isinstance(part, Mapping) and part.get("class_names") is not None),
        None,
    )
    if stored is not None and not (isinstance(stored, list | tuple) and all(isinstance(one, str) for one in stored)):
        raise WeightsError(f"{path}: its class_names are {shorten(repr(stored))}, expected a list of texts.")
    for part in ("model", "data"):
        compare_class_names(options.get(f"{part}.init_args.class_names"), stored, (f"{part}.init_args", path))
    task = options.get("model.init_args")
    if stored and task is not None and "class_names" in task and task["class_names"] is None:
        task["class_names"] = list(stored)


def _compare(configured: Mapping[str, Any], stored: Mapping[str, Any], path: str) -> None:
    """Raise an error if a checkpoint's model was configured differently.

    Raises:
        ConfigError: Settings differ; the message shows each difference.
    """
    own_matter = ["backbone_pretrained", "backbone_ckpt_path", "backbone_tim_tokenizer_ckpt_paths"]
    stored = {_renamed(key): value for key, value in stored.items()}
    own_matter += [
        key for key in (*stored, *configured) if key.startswith(("backbone_tim_cache", "backbone_feature_cache"))
    ]
    differing = [
        f"{key}: {stored.get(key)} in the checkpoint, {configured.get(key)} in the configuration"
        for key in dict.fromkeys([*stored, *configured])
        if stored
        and key not in own_matter
        and _plain(stored.get(key)) != _plain(configured.get(key))
        and not _same_backbone(key, stored.get(key), configured.get(key))
    ]
    if differing:
        raise ConfigError(
            f"{path} is a checkpoint of another model:\n  " + "\n  ".join(differing) + "\nUse the configuration it was "
            "trained with, or load its backbone with backbone_ckpt_path."
        )


def _renamed(key: str) -> str:
    """Return the present name of an argument that a checkpoint holds."""
    name = key.removeprefix("backbone_")
    return f"backbone_{FORMER_ARGUMENTS[name]}" if key.startswith("backbone_") and name in FORMER_ARGUMENTS else key


def _plain(value: Any) -> Any:
    """Return a value as in YAML, with lists instead of tuples."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _same_backbone(key: str, stored: Any, configured: Any) -> bool:
    """Return whether both names mean one architecture; TerraTorch's own TerraMind has the same weights."""
    if key != "backbone":
        return False
    return str(stored).removeprefix("terratorch_") == str(configured).removeprefix("terratorch_")


def run(words: list[str], kind: Callable[..., TerraMindCLI] = TerraMindCLI) -> None:
    """Run a TerraTorch subcommand.

    Args:
        words: Arguments after `terramind`.
        kind: Class of the command line.

    Raises:
        ConfigError: The configuration is not possible; the message contains only the mistake.
    """
    silence_libraries()
    sys.argv = [sys.argv[0], *words]  # the program's path is kept, because Lightning starts further processes with it
    patient: dict[str, Any] = {"exit_on_error": False}
    _make({**patient, **dict.fromkeys(TerraMindCLI.subcommands(), patient)}, kind)


def make_cli(
    words: list[str], ckpt_path: str | Path | None = None, kind: type[TerraMindCLI] = TerraMindCLI
) -> TerraMindCLI:
    """Return the trainer, model and data of a configuration, without running anything.

    Args:
        words: Arguments after a subcommand, e.g. ['--config', 'x.yaml'].
        ckpt_path: Checkpoint whose weights will be loaded later; here it is only checked.
        kind: Class of the command line.

    Raises:
        ConfigError: As in `run`.
    """
    return _make({"exit_on_error": False}, kind, args=words, run=False, ckpt_path=ckpt_path)


def _make(parser: dict[str, Any], kind: Callable[..., TerraMindCLI] = TerraMindCLI, **more: Any) -> TerraMindCLI:
    os.environ.update(RASTER_OPTIONS)
    for word in more.get("args", sys.argv[1:]):
        path = Path(word.rpartition("=")[2])
        if path.suffix in YAML_ENDINGS and path.is_file():
            check_aliases(path)
    assert terramind_plugin.__version__  # the import above is what registers the models
    try:
        return kind(
            model_class=BaseTask,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            save_config_callback=StudioDeploySaveConfigCallback,
            save_config_kwargs={"overwrite": True},
            trainer_class=StatisticsTrainer,
            trainer_defaults={"callbacks": [CustomWriter(write_interval="batch")]},
            parser_kwargs=parser,
            **more,
        )
    except ArgumentError as error:
        raise ConfigError(readable(error.message)) from error
    except ValueError as error:
        if not re.search("Does not validate against|Problem with given class_path", str(error)):
            raise
        raise ConfigError(explain(error)) from error
