"""Plan of a data set: the files of each sample and how they are read, as a data module configures them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from terramind_plugin.errors import DataError
from terramind_plugin.model.modalities import Modality, band_text, find
from terramind_plugin.samples.dates import modality_of
from terramind_plugin.samples.layout import LABEL, Layout, SplitFile, choose_chips


@dataclass(frozen=True)
class ImagePlan:
    """Configured properties of the images of one modality."""

    name: str
    modality: Modality | None
    """Entry of the modality table; None for a new modality."""
    file_bands: tuple[str, ...]
    """Names of the bands of one date in the files; empty if unknown."""
    read: tuple[int, ...]
    """Positions of the model's bands in the file; empty for all."""
    means: tuple[float, ...]
    """Mean of each band of the model; empty if values are not standardised."""
    stds: tuple[float, ...]
    scale: float = 1.0
    """Factor by which the values of the files are multiplied."""
    offset: float | None = None
    """Offset added to the values of the files before scaling; None if not configured."""
    dates: bool = False
    """True if images are time series, so that a file may hold several dates."""
    by_band: bool = False
    """True if files of a series hold all dates of a band together, not all bands of a date."""
    binding: bool = False
    """True if `file_bands` are configured, so that files with other names are refused."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Return the names of the model's bands; empty if unknown."""
        return tuple(self.file_bands[index] for index in self.read) if self.read else self.file_bands


@dataclass
class Split:
    """The samples of training, validation or test."""

    name: str
    """'train', 'val' or 'test'."""
    file: Path | None
    """Split file; None if all files in the folders are samples."""
    content: SplitFile
    """Content of the split file; empty if there is none."""
    samples: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Files that were found, by sample id and then by modality or 'label'."""
    several: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Names of the files if a sample has more than one, by sample id and modality."""
    needed: tuple[str, ...] = ()
    """Modalities, and perhaps 'label', of which each sample must have a file."""

    @property
    def problem(self) -> str:
        """Return why the split could not be read; empty if it could be read."""
        return self.content.problem


@dataclass
class DataPlan:
    """Properties of a data module that the checks use."""

    images: list[ImagePlan]
    splits: list[Split]
    roots: dict[str, str]
    """Configured folders by description, e.g. 'train S2L1C'."""
    own: bool
    """True for this package's data module, which also fills missing pixels and checks values."""
    task: str
    num_classes: int | None
    class_names: tuple[str, ...]
    no_data_replace: float | None
    no_label_replace: float | None
    reduce_zero_label: bool
    missing_allowed: bool
    batch_size: int
    drop_last: bool
    transformed: tuple[str, ...]
    """Names of the splits whose transforms may change the size of images."""
    pretraining: bool = False
    """True for pre-training, which reads chips as the modality table says, without options for other formats."""
    smallest: int = 0
    """Minimum height and width of each image in pixels."""
    chips_are_samples: bool = True
    """True if a sample is one chip; False if the tiles of a chip are samples."""

    def chips(self) -> list[tuple[str, str, dict[str, Path]]]:
        """Return the split, the id and the files of each chip; a chip in several splits comes once."""
        once: dict[object, tuple[str, str, dict[str, Path]]] = {}
        for split in self.splits:
            for name, files in split.samples.items():
                images = frozenset(path for key, path in files.items() if key != LABEL)
                once.setdefault(images or (split.name, name), (split.name, name, files))
        return list(once.values())


def describe_data(module: Any) -> DataPlan | None:
    """Return the plan of a data module, or None if its class is not known.

    Args:
        module: A TerraMindDataModule, GenericMultiModalDataModule, TokenizerDataModule or MaskedDataModule, before
            `setup`.
    """
    if hasattr(module, "chips_are_samples"):
        return _describe_pretraining(module)
    if not hasattr(module, "image_modalities") or not hasattr(module, "train_root"):
        return None
    own = hasattr(module, "band_means")
    plan = DataPlan(
        images=[_image(module, name, own) for name in module.image_modalities],
        splits=[],
        roots={},
        own=own,
        task=_task(module),
        num_classes=module.num_classes,
        class_names=tuple(module.class_names or ()),
        no_data_replace=module.no_data_replace,
        no_label_replace=module.no_label_replace,
        reduce_zero_label=bool(module.reduce_zero_label),
        missing_allowed=bool(module.allow_missing_modalities),
        batch_size=int(module.batch_size or 1),
        drop_last=bool(module.drop_last),
        transformed=tuple(
            name for name in ("train", "val", "test") if _resizes(getattr(module, f"{name}_transform", None))
        ),
    )
    for name in ("train", "val", "test"):
        roots = {key: str(root) for key, root in (getattr(module, f"{name}_root", None) or {}).items() if root}
        labels = getattr(module, f"{name}_label_data_root", None) if plan.task != "none" else None
        if not roots:
            continue
        named = {**roots, **({LABEL: str(labels)} if labels else {})}
        plan.roots.update({f"{name} {key}": root for key, root in named.items()})
        layout = Layout(
            named,
            {**module.image_grep, LABEL: module.label_grep},
            prefix=module.prefix,
            substrings=bool(module.allow_substring_file_names),
            optional=list(roots) if plan.missing_allowed else (),
        )
        plan.splits.append(_split(name, getattr(module, f"{name}_split", None), layout))
    return plan


def _split(name: str, file: Any, layout: Layout) -> Split:
    """Return a split with the files of its samples."""
    split = Split(name, Path(file) if file else None, SplitFile(), needed=tuple(layout.folders))
    if split.file is not None:
        split.content = SplitFile.read(split.file)
    for sample in dict.fromkeys(layout.found() if split.file is None else layout.listed(split.content.ids)):
        found = layout.files(sample)
        split.samples[sample] = {key: Path(files[-1]) for key, files in found.items() if files}
        for key, files in found.items():
            if len(files) > 1:
                split.several[sample, key] = [os.path.basename(path) for path in files]
    return split


def _describe_pretraining(module: Any) -> DataPlan:
    """Return the plan of a data module with chip folders, which reads files as the modality table says."""
    folders = list(module.folders.values())
    splits = []
    for name in ("train", "val"):
        file = getattr(module, f"{name}_split")
        split = Split(name, Path(file) if file else None, SplitFile(), needed=tuple(module.folders))
        if split.file is not None:
            split.content = SplitFile.read(split.file)
            names = split.content.ids
        else:
            try:
                names = choose_chips(folders, None, validation=name == "val")
            except DataError as error:
                split.content.problem, names = str(error).rstrip("."), []
        for chip in dict.fromkeys(names):
            paths = {folder.modality.name: folder.path(chip) for folder in folders}
            split.samples[chip] = {key: path for key, path in paths.items() if path.is_file()}
        splits.append(split)
    images = [
        ImagePlan(
            name=folder.modality.name,
            modality=folder.modality,
            file_bands=folder.modality.band_names,
            read=(),
            means=tuple(folder.modality.mean),
            stds=tuple(folder.modality.std),
        )
        for folder in folders
    ]
    return DataPlan(
        images=images,
        splits=splits,
        roots={key: str(folder.folder) for key, folder in module.folders.items()},
        own=True,
        task="none",
        num_classes=None,
        class_names=(),
        no_data_replace=None,
        no_label_replace=None,
        reduce_zero_label=False,
        missing_allowed=False,
        batch_size=module.batch_size,
        drop_last=True,
        transformed=("train", "val"),
        pretraining=True,
        smallest=module.side,
        chips_are_samples=module.chips_are_samples,
    )


def _task(module: Any) -> str:
    name = getattr(getattr(module, "samples_class", module.dataset_class), "__name__", "").lower()
    return next((task for task in ("segmentation", "regression", "scalar") if task in name), "none")


def _image(module: Any, name: str, own: bool) -> ImagePlan:
    source = modality_of(name)
    modality = find((getattr(module, "sources", None) or {}).get(source, source))
    stored = _names((module.dataset_bands or {}).get(name))
    wanted = _names((module.output_bands or {}).get(name))
    file_bands = stored or (modality.band_names if modality is not None and not wanted else ())
    read = tuple(stored.index(band) for band in wanted if band in stored) if stored and wanted else ()
    if own:
        means, stds = (numbers.get(modality_of(name), ()) for numbers in (module.band_means, module.band_stds))
    else:
        normalise = module.aug
        means, stds = (
            (numbers.get(name) if isinstance(numbers, Mapping) else None) or ()
            for numbers in (getattr(normalise, "means", None), getattr(normalise, "stds", None))
        )
    return ImagePlan(
        name=name,
        modality=modality,
        file_bands=file_bands,
        read=read,
        means=tuple(float(value) for value in means),
        stds=tuple(float(value) for value in stds),
        scale=float((module.constant_scale or {}).get(name, 1.0)),
        offset=(getattr(module, "offsets", None) or {}).get(modality_of(name)),
        dates=bool(module.expand_temporal_dimension or getattr(module, "temporal", False)),
        by_band=modality_of(name) in getattr(module, "by_band", ()),
        binding=bool(stored) or not own,
    )


def _names(bands: Sequence[Any] | None) -> tuple[str, ...]:
    """Return the names of bands; an interval such as 0-3 stays one name, though it stands for several bands."""
    texts = tuple(map(band_text, bands or ()))
    return () if any("-" in text for text in texts) else texts


def _resizes(transform: Any) -> bool:
    """Return whether a transform may change the size of images."""
    several = transform.values() if isinstance(transform, Mapping) else [transform]
    steps = [step for one in several for step in getattr(one, "transforms", None) or ()]
    return any(
        word in type(step).__name__.lower() for step in steps for word in ("crop", "resize", "pad", "scale", "tile")
    )
