"""The command `new`; slow imports happen only when it runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from terramind_plugin.errors import ConfigError

Tasks = Literal[
    "segmentation", "regression", "classification", "multilabel_classification", "scalar_regression", "detection"
]


def run_new(
    *,
    data: Path | None = None,
    task: Tasks | None = None,
    modalities: list[str] | None = None,
    out: Path | None = None,
    labels: Path | None = None,
    splits: Path | None = None,
    bands: list[str] | None = None,
    class_names: list[str] | None = None,
    columns: list[str] | None = None,
    model: str = "terramind_sim_nano",
    list: bool = False,
    from_: str | None = None,
) -> None:
    """Write a configuration for your own folder of chips, or copy one that ships with the package.

    Inspects names, headers, values and labels of the files in --data, and writes a YAML for terramind check and fit.
    Where needed, it also writes split lists (train, val, test) and a table of labels beside the YAML.

    Args:
        data: Folder of the chips: a folder for each modality and one for the labels, or a table of labels.
        task: What to predict: pixels (segmentation, regression) or whole images.
        modalities: Inputs, e.g. S2L2A,S1GRD; NAME=FOLDER or NAME=FOLDER/*SUFFIX says where the files of one are.
        out: YAML to write (default: named after the folder, in the working folder).
        labels: Folder of label rasters, or table of labels, if it is not found by its name.
        splits: Folder of lists such as train.txt, if there are several.
        bands: Bands in the order of the files, if the files do not name them, e.g. S2L2A=BLUE,GREEN,RED; repeatable.
        class_names: Names of the classes in the order of their ids.
        columns: Columns of the table that hold the labels.
        model: Backbone, e.g. terramind_v1_base for the published weights.
        list: List the configurations that ship.
        from_: Copy the configuration of this name.
    """
    from terramind_plugin.configure.shipped import list_configurations

    if list:
        for name, title in list_configurations().items():
            print(f"{name:<32}{title}")
        return
    if from_ is not None:
        _copy(from_, out or Path(f"{Path(from_).name.removesuffix('.yaml')}.yaml"))
        return
    lacking = [name for name, value in (("task", task), ("modalities", modalities), ("data", data)) if value is None]
    if lacking or task is None or data is None:
        raise ConfigError(
            f"--{' and --'.join(lacking)} {'is' if len(lacking) == 1 else 'are'} missing: terramind new --task "
            "segmentation --modalities S2L2A --data FOLDER; or --from NAME to copy a configuration, --list to see them."
        )
    if task == "detection":
        raise ConfigError(
            "terramind new cannot inspect boxes. Copy the configuration of a detection, whose header describes the "
            "layout of the files: terramind new --from vhr10_detection."
        )
    target = out or Path(f"{data.resolve().name or 'config'}.yaml")
    _write_new(
        data, task, modalities or [], target, labels, splits, bands or [], class_names or [], columns or [], model
    )


def _copy(name: str, out: Path) -> None:
    from terramind_plugin.configure.shipped import copy_configuration

    _check_out(out)
    copy_configuration(name, out)
    print(out)


def _write_new(
    data: Path,
    task: str,
    modalities: Sequence[str],
    out: Path,
    labels: Path | None,
    splits: Path | None,
    bands: Sequence[str],
    class_names: Sequence[str],
    columns: Sequence[str],
    model: str,
) -> None:
    from terramind_plugin.configure.recipe import Files, summarise_survey, write_configuration
    from terramind_plugin.configure.survey import Request, look
    from terramind_plugin.model.variants import find_variant

    find_variant(model)
    files = Files.of(out)
    _check_out(files.config)
    _check_out(files.lists)
    request = Request(data, task, modalities, labels, splits, _read_bands(bands), class_names, columns)
    survey = look(request)
    written = write_configuration(survey, request, model, files)
    for line in summarise_survey(survey, files):
        print(line)
    for path in written:
        print(path)
    print(f"Next: terramind check -c {out}; terramind fit -c {out}")


def _check_out(path: Path) -> None:
    """Raise a ConfigError if the path to write to exists or does not end in .yaml."""
    if os.path.lexists(path):
        raise ConfigError(f"{path} exists and is not replaced. Choose another name with --out, or remove it.")
    if path.suffix not in (".yaml", ".yml", "") or (path.suffix == "" and not path.name.endswith("_splits")):
        raise ConfigError(f"--out {path}: write a name that ends in .yaml.")


def _read_bands(words: Sequence[str]) -> dict[str, list[str]]:
    """Return bands by modality from words such as 'S2L2A=BLUE', 'GREEN', 'RED'."""
    from terramind_plugin.model.modalities import resolve

    found: dict[str, list[str]] = {}
    name = ""
    for word in words:
        given, equals, band = word.partition("=")
        if equals:
            name = resolve(given).name
            found.setdefault(name, []).append(band)
        elif not name:
            raise ConfigError(f"--bands takes NAME=BAND,BAND, e.g. S2L2A=BLUE,GREEN,RED, got '{word}'.")
        else:
            found[name].append(word)
    return found
