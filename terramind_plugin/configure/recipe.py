"""The YAML configuration of a fine-tuning, from the results of a survey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from terramind_plugin.configure.folders import SHARED_FOLDER, Group
from terramind_plugin.configure.images import ImageSet
from terramind_plugin.configure.labels import OF_PIXELS
from terramind_plugin.configure.survey import Request, Survey
from terramind_plugin.errors import counted
from terramind_plugin.model.variants import Variant, find_variant
from terramind_plugin.sources.recipe import (
    LARGEST_BATCH,
    YAML_WIDTH,
    choose_crop,
    choose_layers,
    describe_decoder,
    describe_optimizer,
    describe_trainer,
    describe_transforms,
)
from terramind_plugin.system.files import write_lines, write_rows, write_text

TASKS = {
    "segmentation": ("SemanticSegmentationTask", "dice"),
    "regression": ("PixelwiseRegressionTask", "rmse"),
    "classification": ("ClassificationTask", "ce"),
    "multilabel_classification": ("MultiLabelClassificationTask", "bce"),
    "scalar_regression": ("ScalarRegressionTask", "mse"),
}
"""TerraTorch's task and a loss, by the data module's task."""
CROP_OF_SMALL = 256
"""Maximum side of a training image in pixels for the model that ships: it is meant for CPUs."""


@dataclass(frozen=True)
class Files:
    """Files of a new configuration."""

    config: Path
    lists: Path
    """Folder of the split lists and the table of labels."""

    @classmethod
    def of(cls, out: Path) -> Files:
        """Return the files beside a configuration."""
        return cls(out, out.with_name(f"{out.stem}_splits"))


def write_configuration(survey: Survey, request: Request, model: str, files: Files) -> list[Path]:
    """Write the YAML, with the split lists and the table of labels that it needs beside it; return their paths.

    Args:
        survey: Results of the survey of the folder.
        request: Request of the user.
        model: Registry name of the backbone.
        files: Where to write.
    """
    variant = find_variant(model)
    written = []
    lists = dict(survey.lists)
    if not lists:
        files.lists.mkdir(parents=True, exist_ok=True)
        for split, keys in survey.splits.items():
            if keys:
                lists[split] = files.lists / f"{split}.txt"
                write_lines(lists[split], [one for _, one in keys])
                written.append(lists[split])
    table = None
    if request.task not in OF_PIXELS:
        files.lists.mkdir(parents=True, exist_ok=True)
        table = files.lists / "labels.csv"
        used = sorted({one for keys in survey.splits.values() for _, one in keys})
        write_rows(table, [["id", *survey.labels.columns], *([one, *survey.labels.rows[one]] for one in used)])
        written.append(table)
    data = _describe_data(survey, request.task, lists, table, variant)
    content = {
        "seed_everything": 0,
        "trainer": describe_trainer(
            f"output/{files.config.stem}", *(() if request.task == "segmentation" else ("val/loss", "min"))
        ),
        "data": {"class_path": "terramind_plugin.TerraMindDataModule", "init_args": data},
        "model": _describe_model(survey, request.task, variant),
        **describe_optimizer(variant),
    }
    parts = [
        yaml.dump({key: part}, Dumper=_Dumper, sort_keys=False, width=YAML_WIDTH, allow_unicode=True)
        for key, part in content.items()
    ]
    files.config.parent.mkdir(parents=True, exist_ok=True)
    write_text(files.config, _header(survey, request, variant, files) + "\n".join(parts))
    return [files.config, *written]


class _Dumper(yaml.SafeDumper):
    """Writes lists of short values in one line, and values that occur twice in full, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: no anchors."""
        return True

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        """Return a list in one line if it holds no list or mapping."""
        plain = not any(isinstance(one, dict | list) for one in sequence)
        return super().represent_sequence(tag, sequence, plain or flow_style)


def summarise_survey(survey: Survey, files: Files) -> list[str]:
    """Return the findings: a line for each modality, one for the labels, one for the splits."""
    lines = []
    for image in survey.images:
        groups = survey.groups[image.name]
        bands = image.file_bands or (image.modality.band_names if image.modality else ())
        size = ", ".join(f"{h} x {w}" for h, w in list(image.sizes)[:2]) + (" ..." if len(image.sizes) > 2 else "")
        number = sum(image.sizes.values())
        text = f"{image.name}: {counted(number, 'file')}, {', '.join(map(str, groups))}; "
        text += f"{counted(len(bands), 'band')}, {size} pixels"
        lines.append("; ".join([text, *image.notes]) + ".")
    labels = survey.labels
    where = str(survey.label_group) if survey.label_group else ", ".join(labels.columns[:6])
    what = [f"{labels.num_classes} classes"] if labels.num_classes else [] if labels.notes else ["numbers"]
    if labels.class_names:
        what[0] += f": {', '.join(labels.class_names[:12])}{' ...' if len(labels.class_names) > 12 else ''}"
    lines.append("; ".join([f"labels: {where}", *what, *labels.notes]) + ".")
    shown = ", ".join(f"{len(keys)} {split}" for split, keys in survey.splits.items())
    lists = ", ".join(map(str, survey.lists.values())) or f"lists in {files.lists.name}/ beside the YAML"
    lines.append(f"samples: {shown}; {lists}.")
    notes = list(survey.notes)
    if len({shape for image in survey.images for shape in image.sizes}) > 1:
        notes.append("chips differ in size: training takes random crops, validation and test the middle")
    if not survey.splits.get("test"):
        notes.append(
            "no chips are left for a test: terramind validate gives scores on the chips that chose the checkpoint"
        )
    return lines + [f"note: {note}." for note in notes]


def _header(survey: Survey, request: Request, variant: Variant, files: Files) -> str:
    seen = [f"#   {line}" for line in summarise_survey(survey, files)]
    judge = "test" if survey.splits.get("test") else "validate"
    lines = [
        f"# {request.task.replace('_', ' ').capitalize()} of the chips in {request.data}, written by terramind new.",
        "#",
        f"# Check:     terramind check -c {files.config}",
        f"# Train:     terramind fit -c {files.config}",
        f"# {judge.capitalize() + ':':10} terramind {judge} -c {files.config} "
        f"--ckpt_path output/{files.config.stem}/checkpoints/best.ckpt",
        "#",
        "# What was found:",
        *seen,
    ]
    if variant.hub_repo is None:
        lines += [
            "#",
            "# The model is the small one that ships with the package. For the published weights, write this file",
            "# again with --model terramind_v1_base.",
        ]
    return "\n".join(lines) + "\n"


def _describe_data(
    survey: Survey, task: str, lists: dict[str, Path], table: Path | None, variant: Variant
) -> dict[str, Any]:
    """Return the arguments of the data module."""
    labels, names = survey.labels, [image.name for image in survey.images]
    smallest = min(len(survey.splits["train"]), LARGEST_BATCH)
    data: dict[str, Any] = {"task": task, "batch_size": 1 << (smallest.bit_length() - 1), "num_workers": 1}
    if labels.num_classes:
        data |= {"num_classes": labels.num_classes, "class_names": list(labels.class_names)}
    data["modalities"] = [*names, *([survey.positions] if survey.positions else [])]
    data |= _describe_roots(survey, table)
    data["image_grep"] = {name: _one_or_list([f"*{group.suffix}" for group in survey.groups[name]]) for name in names}
    if survey.label_group is not None:
        data["label_grep"] = f"*{survey.label_group.suffix}"
    data |= {f"{split}_split": str(path.resolve()) for split, path in lists.items()}
    data["predict_split"] = data.get("test_split", data["val_split"])
    data["allow_substring_file_names"] = False
    data |= _describe_reading(survey.images)
    if labels.shifted:
        data["reduce_zero_label"] = True
    if labels.fills_gaps:
        data["no_label_replace"] = labels.ignored
    if survey.missing:
        data["allow_missing_modalities"] = True
    return data | _describe_transforms(survey, variant)


def _one_or_list(entries: Sequence[str]) -> Any:
    return entries[0] if len(set(entries)) == 1 else list(entries)


def _describe_roots(survey: Survey, table: Path | None) -> dict[str, Any]:
    """Return the folders of images and labels, by split if they differ."""
    parts = {split: keys[0][0] for split, keys in survey.splits.items() if keys}

    def roots(part: str) -> dict[str, Any]:
        return {
            name: _one_or_list([str((group.root(part) or Path()).resolve()) for group in groups])
            for name, groups in survey.groups.items()
        }

    def labels(part: str) -> str:
        group: Group | None = survey.label_group
        if group is not None:
            return str((group.root(part) or Path()).resolve())
        return str(table.resolve()) if table is not None else ""

    if set(parts.values()) == {SHARED_FOLDER}:
        return {"data_root": roots(SHARED_FOLDER), "label_data_root": labels(SHARED_FOLDER)}
    found: dict[str, Any] = {}
    for split, part in parts.items():
        found |= {f"{split}_data_root": roots(part), f"{split}_label_data_root": labels(part)}
    return found | {"predict_data_root": roots(parts.get("test", parts["val"]))}


def _describe_reading(images: Sequence[ImageSet]) -> dict[str, Any]:
    """Return bands, factors, offsets and dates of the files."""
    entries = {
        "dataset_bands": {image.name: list(image.file_bands) for image in images if image.file_bands},
        "output_bands": {image.name: list(image.read) for image in images if image.read},
        "constant_scale": {image.name: image.scale for image in images if image.scale is not None},
        "offsets": {image.name: image.offset for image in images if image.offset is not None},
    }
    found: dict[str, Any] = {key: entry for key, entry in entries.items() if entry}
    if any(image.dates > 1 for image in images):
        found["expand_temporal_dimension"] = True
    by_band = [image.name for image in images if image.by_band]
    if by_band:
        found["temporal_channel_major"] = by_band
    return found


def _describe_transforms(survey: Survey, variant: Variant) -> dict[str, Any]:
    """Return the transforms, with a crop if chips differ in size or their sides are not multiples of the patch size."""
    sizes = sorted({side for image in survey.images for shape in image.sizes for side in shape})
    crop = choose_crop(sizes, variant.patch_size)
    small = CROP_OF_SMALL if variant.hub_repo is None and sizes[0] > CROP_OF_SMALL else None
    return describe_transforms(crop, small)


def _describe_model(survey: Survey, task: str, variant: Variant) -> dict[str, Any]:
    name, loss = TASKS[task]
    labels = survey.labels
    modalities = [image.name for image in survey.images] + ([survey.positions] if survey.positions else [])
    model: dict[str, Any] = {
        "backbone": variant.name,
        "backbone_pretrained": True,
        "backbone_modalities": modalities,
    }
    bands = {image.name: list(image.model_bands) for image in survey.images if image.model_bands}
    if bands:
        model["backbone_bands"] = bands
    dates = max(image.dates for image in survey.images)
    dense = task in OF_PIXELS
    if dense:
        model["backbone_out_indices"] = choose_layers(variant)
    if dates > 1:
        model |= {"backbone_use_temporal": True, "backbone_temporal_pooling": "concat" if dense else "mean"}
        if dense:
            model["backbone_temporal_n_timestamps"] = dates
    if dense:
        model |= describe_decoder(variant)
    else:
        model |= {
            "necks": [
                {"name": "SelectIndices", "indices": [variant.depth - 1]},
                {"name": "ReshapeTokensToImage", "remove_cls_token": False},
            ],
            "decoder": "IdentityDecoder",
        }
    model["head_dropout"] = 0.1
    task_args: dict[str, Any] = {"model_factory": "EncoderDecoderFactory", "model_args": model, "loss": loss}
    if task == "scalar_regression":
        model["num_outputs"] = len(labels.columns)
        task_args["var_names"] = list(labels.columns)
    elif labels.num_classes:
        model["num_classes"] = labels.num_classes
        task_args["class_names"] = list(labels.class_names)
    if dense:
        task_args["ignore_index"] = labels.ignored
    if task in (*OF_PIXELS, "scalar_regression"):
        task_args["plot_on_val"] = False
    return {"class_path": f"terratorch.tasks.{name}", "init_args": task_args}
