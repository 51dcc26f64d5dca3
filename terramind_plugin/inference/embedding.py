"""Embeddings of chips and scenes: a vector for each patch or window, with its place on the ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial as bind
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError
from terramind_plugin.files import write_figure
from terramind_plugin.inference.cells import plan_patches, plan_whole_windows
from terramind_plugin.inference.embedder import build_embedder
from terramind_plugin.inference.job import RUN_TAG, Job, plan_jobs, refuse_empty
from terramind_plugin.inference.options import Options
from terramind_plugin.inference.preview import draw_scene
from terramind_plugin.inference.resume import Partial
from terramind_plugin.inference.runner import run_jobs
from terramind_plugin.inference.settings import Settings
from terramind_plugin.inference.vector_files import (
    Vectors,
    check_parquet,
    check_zarr,
    need,
    read_parquet_tag,
    read_zarr_tag,
    write_parquet,
    write_zarr,
)
from terramind_plugin.inference.vectors import (
    MOST_AT_ONCE,
    Precision,
    outline,
    principal_components,
    taken_on,
    tile_side,
)
from terramind_plugin.model.checkpoints import hash_weights
from terramind_plugin.model.variants import Variant
from terramind_plugin.raster.reader import Source
from terramind_plugin.raster.series import Series
from terramind_plugin.raster.writer import Layer, write_layer

ENDINGS = {"cog": ".tif", "zarr": ".zarr", "parquet": ".parquet"}
"""Endings of files by format."""
OF_SEED = ("seed", "steps")
"""Entries of `Settings.describe` that say how a model samples; a backbone does not."""


@dataclass(frozen=True)
class Storage:
    """The way in which vectors are stored."""

    format: Literal["cog", "zarr", "parquet"] = "cog"
    dtype: Literal["float32", "float16", "int8"] = "float32"
    pool: Literal["none", "mean"] = "none"
    """'none' for a vector for each patch, 'mean' for one for each window."""
    preview: bool = False
    """Whether to draw the principal components."""

    def check(self) -> None:
        """Raise a ConfigError if a package is missing that the format needs."""
        if self.format == "zarr":
            need("zarr", self.format)
        if self.format == "parquet":
            need("pyarrow", self.format)

    def describe(self) -> dict[str, str]:
        """Return what decides on the files."""
        return {"format": self.format, "dtype": self.dtype, "pool": self.pool}


@dataclass
class EmbeddingJob(Job):
    """A scene whose results are vectors."""

    storage: Storage = Storage()

    @property
    def draws(self) -> bool:
        """Whether there is a picture."""
        return self.storage.preview

    def target(self, layer: Layer) -> Path:
        """Return the path of the vectors."""
        return self.folder / f"{self.stem}_{layer.ending}{ENDINGS[self.storage.format]}"

    def read_run(self, path: Path) -> str | None:
        """Return the fingerprint in a file of the result, see `Job.read_run`."""
        if self.storage.format == "zarr":
            return read_zarr_tag(path, RUN_TAG)
        if self.storage.format == "parquet":
            return read_parquet_tag(path, RUN_TAG)
        return super().read_run(path)

    def check(self, path: Path) -> None:
        """Read a file of the result to its end, see `Job.check`."""
        if self.storage.format == "zarr":
            check_zarr(path)
        elif self.storage.format == "parquet":
            check_parquet(path)
        else:
            super().check(path)

    def write(self, layer: Layer, partial: Partial, tags: Mapping[str, str]) -> None:
        """Write the vectors, see `Job.write`."""
        path, grid = self.target(layer), self.cells
        precision = Precision.fit(self.storage.dtype, partial, layer)

        small = grid.height * grid.width * layer.bytes_per_pixel <= MOST_AT_ONCE
        whole = precision.store(partial.read(layer, 0, grid.height)) if small else None

        def read(first: int, last: int) -> NDArray[Any]:
            return precision.store(partial.read(layer, first, last)) if whole is None else whole[:, first:last]

        vectors = Vectors(layer.descriptions, grid, precision, read)
        if self.storage.format == "zarr":
            write_zarr(path, vectors, tags)
        elif self.storage.format == "parquet":
            write_parquet(path, vectors, tags, self.outlines, self.path.name, taken_on(self.path))
        else:
            half = precision.dtype == "float16"
            stored = replace(
                layer, dtype="float32" if half else precision.dtype, nodata=precision.nodata, half=half,
                scales=precision.scales, tile=tile_side(grid.shape, layer.bytes_per_pixel),
            )  # fmt: skip
            rows = (lambda first, last: read(first, last).astype(np.float32)) if half else read
            write_layer(path, rows, stored, grid, tags, cog=True)

    def outlines(self, first: int, last: int) -> NDArray[np.float64]:
        """Return the footprints of some rows of vectors, [rows, columns, 5, 2], in the CRS of the scene."""
        rows = [self.plan.rows.extent(number) for number in range(first, last)]
        columns = [self.plan.columns.extent(number) for number in range(self.plan.columns.length)]
        return outline(self.grid, rows, columns)

    def draw(self, sources: Mapping[str, Source | Series], partial: Partial, tags: Mapping[str, str]) -> None:
        """Write a picture of the inputs and of the principal components, see `Job.draw`."""
        (layer,) = self.layers
        colors = principal_components(partial, layer)
        write_figure(self.picture, draw_scene(sources, [], tags, pictures={"principal components": colors}))


def embed(
    scenes: Sequence[Mapping[str, Path]],
    variant: Variant,
    settings: Settings,
    options: Options,
    storage: Storage,
    *,
    layer: int = -1,
    bands: Mapping[str, Sequence[str]] | None = None,
) -> list[Path]:
    """Write the embeddings of scenes, and return the files written.

    Args:
        scenes: For each scene its files by modality, the one that gives the grid first.
        variant: Model.
        settings: Weights of the model.
        options: How to go through scenes.
        storage: How to store vectors.
        layer: Layer of the encoder, from 0 on, or from -1 backwards.
        bands: Bands of a modality in the order of the model's input, where it has not all of them.

    Raises:
        ConfigError: An argument is not possible.
        DataError: A file cannot be used or written.
        WeightsError: The weights are not there or do not fit.
    """
    storage.check()
    names = list(scenes[0])
    model, expected = build_embedder(
        variant, settings.ckpt_path, names, pretrained=settings.pretrained, bands=bands, layer=layer
    )
    options = options.settle(max(model.backbone.img_size), model.patch)
    planner = plan_patches if storage.pool == "none" else plan_whole_windows
    jobs = plan_jobs(scenes, expected, options, model.patch, planner=planner, kind=bind(EmbeddingJob, storage=storage))
    refuse_empty(jobs)
    described = settings.describe(variant.name, variant)
    described = {key: value for key, value in described.items() if key not in OF_SEED} | storage.describe()
    described |= {"layer": str(layer % variant.depth), "weights_sha256": hash_weights(model.state_dict())[:16]}
    described |= {f"bands of {name}": ", ".join(expected[name].bands) for name in names}
    for job in jobs:
        job.decide("embed", model.layers, described, options)
        _refuse_folder(job)
    return run_jobs(model, jobs, options)


def _refuse_folder(job: Job) -> None:
    """Raise a ConfigError if a Zarr store would replace a folder that is none of ours."""
    for path in job.written:
        if not path.is_dir():
            continue
        try:
            ours = job.read_run(path) is not None
        except (OSError, ValueError):
            ours = False
        if not ours:
            raise ConfigError(
                f"{path} is a folder that terramind has not written, so it is not replaced. Move it away, or give "
                "another folder with --out."
            )
