"""Loading: repeated samples, batches of random modalities, and stacking of samples to a batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import BatchSampler, Dataset, Sampler

from terramind_plugin.data.slots import join
from terramind_plugin.data.terratorch_internals import collate_samples
from terramind_plugin.errors import DataError
from terramind_plugin.raster.paths import is_raster
from terramind_plugin.samples.checks.headers import map_files, read_header

Pick = tuple[int, Sequence[str]]
"""Number of a sample and the names of the modalities to read."""


class Repeated(Dataset[Any]):
    """Data set that repeats the samples of another one.

    Args:
        dataset: Data set whose index is a number, or a number and names of modalities.
        times: Number of repetitions of each sample.
    """

    def __init__(self, dataset: Any, times: int) -> None:
        self.dataset = dataset
        self.times = times

    def __len__(self) -> int:
        """Return the number of samples, including repetitions."""
        return len(self.dataset) * self.times

    def __getitem__(self, index: int | Pick) -> Any:
        """Return a sample."""
        return self.dataset[self._original(index)]

    def __getitems__(self, indices: Sequence[int | Pick]) -> list[Any]:
        """Return samples."""
        samples: list[Any] = self.dataset.__getitems__([self._original(index) for index in indices])
        return samples

    def _original(self, index: int | Pick) -> int | Pick:
        if isinstance(index, tuple):
            return index[0] % len(self.dataset), index[1]
        return index % len(self.dataset)


class ModalityBatches(BatchSampler):
    """Batches of sample numbers, each with some modalities drawn at random.

    Lightning makes such a sampler again with a `sampler` of its own, so that each process of a distributed run gets its
    share of the samples in batches of `batch_size`.

    Args:
        sampler: Numbers of samples.
        batch_size: Number of samples in a batch.
        drop_last: Whether to leave out a batch that is not full.
        modalities: Names of the modalities to choose from.
        count: Number of modalities that are drawn for a batch.
        replace: Whether a modality may be drawn twice.
    """

    def __init__(
        self,
        sampler: Sampler[int] | Iterable[int],
        batch_size: int,
        drop_last: bool,
        modalities: Sequence[str],
        count: int,
        replace: bool,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.modalities = list(modalities)
        self.count = count
        self.replace = replace

    def __iter__(self) -> Iterator[Any]:
        """Yield for each batch a list of `Pick`."""
        for numbers in super().__iter__():
            drawn = np.random.choice(self.modalities, self.count, replace=self.replace)
            yield [(number, tuple(dict.fromkeys(drawn.tolist()))) for number in numbers]


def check_sizes(samples: Sequence[Mapping[str, Any]]) -> None:
    """Raise an error if the rasters of a data set differ in size; only their headers are read.

    Raises:
        DataError: The sizes of two files differ; the message names them.
    """
    files = [
        (name, Path(path))
        for sample in samples
        for name, path in sample.items()
        if isinstance(path, str) and is_raster(path)
    ]
    first: dict[str, tuple[Path, tuple[int, int]]] = {}
    for (name, path), header in zip(files, map_files(read_header, [path for _, path in files]), strict=True):
        if header.problem and not header.bands:
            raise DataError(f"{path} cannot be read: {header.problem}")
        known = first.setdefault(name, (path, header.shape))
        if known[1] != header.shape:
            raise DataError(
                f"{name} files differ in size: {known[0]} {list(known[1])}, {path} {list(header.shape)}. "
                "Cut them to one size, or use batch_size: 1 or check_stackability: false with a crop."
            )


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a batch of samples. 'modality_mask' is left out if no sample lacks a modality: attention is faster then.

    Raises:
        DataError: The samples have different sizes; the message names the files.
    """
    first = samples[0]
    for sample in samples[1:]:
        for name, shape, other in _shapes(first, sample):
            if len(shape) == 4 and shape[0] == other[0] and shape[2:] == other[2:]:
                if shape[1] != other[1]:
                    raise DataError(
                        f"Samples of a batch differ in their number of dates: {_file(first, name)} has {shape[1]}, "
                        f"{_file(sample, name)} has {other[1]}. Give all samples the same number, or use batch_size: 1."
                    )
            elif shape != other:
                turned = shape[:-2] == other[:-2] and shape[-2:] == other[:-3:-1]
                advice = (
                    "A transform rotates or transposes images that are not square: use flips, or add a crop before it."
                    if turned
                    else "Cut the files to one size, add a crop to the transforms, or use batch_size: 1."
                )
                raise DataError(
                    f"Samples of a batch differ in size: {_file(first, name)} {shape}, {_file(sample, name)} {other}. "
                    f"{advice}"
                )
    batch: dict[str, Any] = _join(samples)
    if all(mask.all() for mask in batch.get("modality_mask", {}).values()):
        batch.pop("modality_mask", None)
    return batch


def _join(values: Sequence[Any]) -> Any:
    """Return the values of all samples as a batch, without a copy if they already lie in memory as a batch."""
    if isinstance(values[0], dict):
        return {key: _join([value[key] for value in values]) for key in values[0]}
    joined = join(values) if isinstance(values[0], Tensor) else None
    return collate_samples([{"value": value} for value in values])["value"] if joined is None else joined


def _shapes(first: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, list[int], list[int]]]:
    def tensors(sample: dict[str, Any]) -> dict[str, Tensor]:
        image = sample["image"]
        images = image if isinstance(image, dict) else {"image": image}
        return {**images, **({"mask": sample["mask"]} if "mask" in sample else {})}

    def is_repeated(image: Any) -> bool:
        return isinstance(image, Tensor) and image.ndim == 4 and image.stride(1) == 0

    a, b = tensors(first), tensors(other)
    return [
        (name, list(a[name].shape), list(b[name].shape))
        for name in sorted(a, key=lambda name: is_repeated(a[name]))  # a file with one date is not the one to name
        if name in b and isinstance(a[name], Tensor) and isinstance(b[name], Tensor)
    ]


def _file(sample: dict[str, Any], name: str) -> Any:
    files = sample.get("filename", {})
    return files.get(name, files) if isinstance(files, dict) else files
