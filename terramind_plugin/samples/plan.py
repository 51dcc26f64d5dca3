"""Which files a data module reads for which sample, as its configuration says."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from terramind_plugin.model.modalities import Modality, find

LABEL = "label"
RASTERS = (".tif", ".tiff")
TABLES = (".csv", ".parquet")


@dataclass(frozen=True)
class ImagePlan:
    """What a configuration says of the images of one modality."""

    name: str
    modality: Modality | None
    """Entry of the table; None for one that is new."""
    file_bands: tuple[str, ...]
    """Names of the bands of the files, of one date; empty if unknown."""
    read: tuple[int, ...]
    """Positions of the bands that the model gets, among those of the files; empty for all."""
    means: tuple[float, ...]
    """Of the bands that the model gets; empty if values are not standardised."""
    stds: tuple[float, ...]
    scale: float = 1.0
    """Factor on the values of the files."""
    offset: float | None = None
    """Added to the values of the files, before that; None if the configuration does not say."""
    dates: bool = False
    """Whether a file holds several dates, date by date."""
    binding: bool = False
    """Whether `file_bands` stand in the configuration, so that files may not name theirs otherwise."""

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the bands that the model gets; empty if unknown."""
        return tuple(self.file_bands[index] for index in self.read) if self.read else self.file_bands


@dataclass
class Split:
    """The samples of training, validation, test or prediction."""

    name: str
    file: Path | None
    """The list they come from; None if from the folders."""
    lines: list[str]
    """Of that file, as they are, without line ends."""
    windows_ends: bool
    ids: list[str]
    samples: dict[str, dict[str, Path]] = field(default_factory=dict)
    """Files by modality and 'label', by sample id; only those found."""
    several: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    """Names of files where a sample has more than one, by sample id and modality."""
    needed: tuple[str, ...] = ()
    """What each sample has to have."""
    problem: str = ""
    """Why it could not be read."""


@dataclass
class DataPlan:
    """All that the checks need to know of a data module."""

    images: list[ImagePlan]
    splits: list[Split]
    roots: dict[str, str]
    """Folders that are named, by a text such as 'train S2L1C'."""
    own: bool
    """Whether it is this package's data module, which fills and checks what TerraTorch's does not."""
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
    """Splits with a transform that may change sizes."""


def describe(module: Any) -> DataPlan | None:
    """Return the plan of a data module, or None if it is not of TerraTorch's generic multi-modal kind.

    Args:
        module: A TerraMindDataModule or GenericMultiModalDataModule, not set up.
    """
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
    listings = Listings()
    for name in ("train", "val", "test"):
        roots = {key: str(root) for key, root in (getattr(module, f"{name}_root", None) or {}).items() if root}
        labels = getattr(module, f"{name}_label_data_root", None) if plan.task != "none" else None
        if not roots:
            continue
        named = {**roots, **({LABEL: str(labels)} if labels else {})}
        plan.roots.update({f"{name} {key}": root for key, root in named.items()})
        suffixes = {**module.image_grep, LABEL: module.label_grep}
        split = _split(name, getattr(module, f"{name}_split", None), named, suffixes, module, listings)
        plan.splits.append(split)
    return plan


def _task(module: Any) -> str:
    name = getattr(getattr(module, "samples_class", module.dataset_class), "__name__", "").lower()
    return next((task for task in ("segmentation", "regression", "scalar") if task in name), "none")


def _image(module: Any, name: str, own: bool) -> ImagePlan:
    modality = find(name)
    stored = _names((module.dataset_bands or {}).get(name))
    wanted = _names((module.output_bands or {}).get(name))
    file_bands = stored or (modality.band_names if modality is not None and not wanted else ())
    read = tuple(stored.index(band) for band in wanted if band in stored) if stored and wanted else ()
    if own:
        means, stds = module.band_means.get(name, ()), module.band_stds.get(name, ())
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
        offset=(getattr(module, "offsets", None) or {}).get(name),
        dates=bool(module.expand_temporal_dimension or getattr(module, "temporal", False)),
        binding=bool(stored) or not own,
    )


def _names(bands: Sequence[Any] | None) -> tuple[str, ...]:
    """Return names of bands; intervals such as 0-3, which stand for several, are not taken apart."""
    texts = tuple(str(getattr(band, "value", band)) for band in bands or ())
    return () if any("-" in text for text in texts) else texts


def _resizes(transform: Any) -> bool:
    """Whether a transform may change the size of images."""
    several = transform.values() if isinstance(transform, Mapping) else [transform]
    steps = [step for one in several for step in getattr(one, "transforms", None) or ()]
    return any(
        word in type(step).__name__.lower() for step in steps for word in ("crop", "resize", "pad", "scale", "tile")
    )


class Listings:
    """Names of files in folders, read once."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._sets: dict[str, set[str]] = {}

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none if there is no such folder."""
        if folder not in self._names:
            self._names[folder] = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
            self._sets[folder] = set(self._names[folder])
        return self._names[folder]

    def match(self, root: str, stem: str, pattern: str, substrings: bool) -> list[str]:
        """Return the paths of files that a sample may mean, as the data sets look for them.

        Args:
            root: Folder.
            stem: Sample id, which may hold a folder.
            pattern: What follows it, e.g. '*_S2Hand.tif'.
            substrings: Whether there may be text between both.
        """
        folder, start = os.path.split(os.path.join(root, stem))
        names = self.names(folder)
        if start + pattern.strip("*") in self._sets[folder]:
            return [os.path.join(folder, start + pattern.strip("*"))]
        return [os.path.join(folder, name) for name in self._beginning(names, start, pattern)] if substrings else []

    def _beginning(self, names: list[str], start: str, pattern: str) -> Iterator[str]:
        for name in names[bisect_left(names, start) :]:
            if not name.startswith(start):
                return
            if fnmatchcase(name[len(start) :], pattern):
                yield name


def _split(
    name: str, file: Any, roots: Mapping[str, str], suffixes: Mapping[str, str], module: Any, listings: Listings
) -> Split:
    split = Split(name, Path(file) if file else None, [], False, [], needed=tuple(roots))
    substrings = bool(module.allow_substring_file_names)
    folders = {key: root for key, root in roots.items() if os.path.isdir(root)}
    if split.file is not None:
        _read_lines(split)
    elif folders:
        first = next(iter(folders))
        ending = suffixes[first].strip("*")
        split.ids = [path.removesuffix(ending) for path in listings.names(folders[first]) if path.endswith(ending)]
    prefix = module.prefix if module.prefix not in (None, "*") else ""
    for sample in dict.fromkeys(split.ids):
        found: dict[str, Path] = {}
        for key, root in folders.items():
            files = listings.match(root, os.path.join(prefix, sample), suffixes[key], substrings)
            if files:
                found[key] = Path(files[-1])
            if len(files) > 1:
                split.several[sample, key] = [os.path.basename(path) for path in files]
        split.samples[sample] = found
    split.needed = tuple(folders)
    return split


def _read_lines(split: Split) -> None:
    """Fill in lines and ids; where that fails, why."""
    assert split.file is not None
    if not split.file.is_file():
        split.problem = f"{split.file} does not exist"
        return
    if split.file.suffix in TABLES:
        import pandas as pd

        read = pd.read_csv if split.file.suffix == ".csv" else pd.read_parquet
        try:
            table = read(split.file, **({"index_col": 0} if split.file.suffix == ".csv" else {}))
        except (ValueError, OSError) as error:
            split.problem = f"{split.file} is no table: {' '.join(str(error).split())}"
            return
        split.lines = [str(entry) for entry in table.index]
    else:
        content = split.file.read_bytes()
        split.windows_ends = b"\r\n" in content
        try:
            split.lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            split.problem = f"{split.file} is not UTF-8 text"
            return
    split.ids = [line.strip() for line in split.lines if line.strip()]
    if not split.ids:
        split.problem = f"{split.file} names no sample"
