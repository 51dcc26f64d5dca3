"""Embeddings of chips and scenes: a vector for each patch or window, with its position on the ground."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from functools import partial as bind
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.backbones.series import SeriesPooling
from terramind_plugin.errors import ConfigError
from terramind_plugin.inference.cells import plan_patches, plan_whole_windows
from terramind_plugin.inference.embedder import Embedder, Trained, build_embedder
from terramind_plugin.inference.job import RUN_TAG, Job
from terramind_plugin.inference.options import Options, SatelliteArguments
from terramind_plugin.inference.planning import plan_jobs, refuse_dates, refuse_empty, refuse_nowhere
from terramind_plugin.inference.preview import draw_scene
from terramind_plugin.inference.resume import FinishedRows
from terramind_plugin.inference.runner import run_jobs
from terramind_plugin.inference.satellites import open_jobs
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
from terramind_plugin.model.dates import DatesTaken
from terramind_plugin.model.variants import Variant
from terramind_plugin.raster.reader import Expected, Source
from terramind_plugin.raster.series import Series
from terramind_plugin.raster.writer import Layer, write_layer
from terramind_plugin.system.files import hash_content, write_figure

ENDINGS = {"cog": ".tif", "zarr": ".zarr", "parquet": ".parquet"}
"""Endings of files by format."""
OF_SEED = ("seed", "steps")
"""Entries of `Settings.describe` about sampling, which do not apply to a backbone."""


@dataclass(frozen=True)
class Storage:
    """Format of stored vectors."""

    format: Literal["cog", "zarr", "parquet"] = "cog"
    dtype: Literal["float32", "float16", "int8"] = "float32"
    pool: Literal["none", "mean"] = "none"
    """'none' for a vector for each patch, 'mean' for one for each window."""
    preview: bool = False
    """Whether to draw the principal components."""

    def check(self) -> None:
        """Raise a ConfigError if a package that the format needs is missing."""
        if self.format == "zarr":
            need("zarr", self.format)
        if self.format == "parquet":
            need("pyarrow", self.format)

    def describe(self) -> dict[str, str]:
        """Return the settings that determine the files."""
        return {"format": self.format, "dtype": self.dtype, "pool": self.pool}


@dataclass
class EmbeddingJob(Job):
    """A scene whose results are vectors."""

    storage: Storage = Storage()

    @property
    def draws(self) -> bool:
        """Return whether there is a picture."""
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

    def write(self, layer: Layer, partial: FinishedRows, tags: Mapping[str, str]) -> None:
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
            write_parquet(path, vectors, tags, self.outlines, self.path.name, self._day())
        else:
            half = precision.dtype == "float16"
            stored = replace(
                layer, dtype="float32" if half else precision.dtype, nodata=precision.nodata, half=half,
                scales=precision.scales, noisy=True, tile=tile_side(grid.shape, layer.bytes_per_pixel),
            )  # fmt: skip
            rows = (lambda first, last: read(first, last).astype(np.float32)) if half else read
            write_layer(path, rows, stored, grid, tags, cog=True)

    def _day(self) -> date | None:
        """Return the day of the images; None if it is unknown, or if there are several."""
        if self.taken is not None or not self.later:
            return self.taken or taken_on(self.path)
        days = {taken_on(path) for path in self.files_of(next(iter(self.later)))}
        return days.pop() if len(days) == 1 else None

    def outlines(self, first: int, last: int) -> NDArray[np.float64]:
        """Return the footprints of some rows of vectors, [rows, columns, 5, 2], in the CRS of the scene."""
        rows = [self.plan.rows.extent(number) for number in range(first, last)]
        columns = [self.plan.columns.extent(number) for number in range(self.plan.columns.length)]
        return outline(self.grid, rows, columns)

    def draw(self, sources: Mapping[str, Source | Series], partial: FinishedRows, tags: Mapping[str, str]) -> None:
        """Write a picture of the inputs and of the principal components, see `Job.draw`."""
        (layer,) = self.layers
        colors = principal_components(partial, layer)
        write_figure(self.picture, draw_scene(sources, [], tags, pictures={"principal components": colors}))


def embed(
    scenes: Sequence[Mapping[str, Path | tuple[Path, ...]]],
    variant: Variant,
    settings: Settings,
    options: Options,
    storage: Storage,
    *,
    layer: int = -1,
    bands: Mapping[str, Sequence[str]] | None = None,
    pooling: SeriesPooling | None = None,
    trained: Trained | None = None,
    satellites: SatelliteArguments | None = None,
    modalities: Sequence[str] = (),
) -> list[Path]:
    """Write the embeddings of scenes, and return the files written.

    Args:
        scenes: For each scene the file of each modality, or its files of several dates in the order of time. The first
            modality gives the grid.
        variant: Model.
        settings: Weights of the model.
        options: How to go through scenes.
        storage: How to store vectors.
        layer: Layer of the encoder, counted from 0, or backwards from -1.
        bands: Bands of a modality in the order of the model's input, if the files lack some of them.
        pooling: Pooling of several dates; None for one date, or for the pooling of a fine-tuned model.
        trained: Description of a fine-tuned model; None to read it.
        satellites: Catalogues that give the scenes instead of `scenes`.
        modalities: Inputs that are read from catalogues.

    Raises:
        ConfigError: An argument is not possible.
        DataError: A file cannot be used or written.
        WeightsError: The weights are missing or do not fit.
    """
    storage.check()
    names = list(scenes[0]) if scenes else list(modalities)
    model, expected = build_embedder(
        variant, settings.ckpt_path, names, pretrained=settings.pretrained, bands=bands, layer=layer, pooling=pooling,
        trained=trained,
    )  # fmt: skip
    options = options.settle(max(model.backbone.img_size), model.patch)
    plan = _planner(expected, options, storage, model.patch)
    jobs = plan(scenes)
    described = _describe(variant, settings, storage, model, expected, layer)
    taken = None if model.pooling is None else model.pooling.taken
    with open_jobs(jobs, satellites, expected, options, plan, "embed", taken) as run:
        jobs = run.jobs
        refuse_nowhere(jobs, model.positions)
        _settle_dates(model, jobs)
        if satellites is None:
            refuse_empty(jobs)
        for number, job in enumerate(jobs):
            job.decide("embed", model.layers, described | run.describe(number) | _describe_dates(job), options)
            _refuse_folder(job)
        return run.finish(run_jobs(model, jobs, options))


def _planner(
    expected: Mapping[str, Expected], options: Options, storage: Storage, patch: int
) -> Callable[[Sequence[Mapping[str, Any]]], list[Job]]:
    """Return a function that plans the jobs of scenes."""
    kind = bind(EmbeddingJob, storage=storage)
    planner = plan_patches if storage.pool == "none" else plan_whole_windows
    return bind(plan_jobs, expected=expected, options=options, patch=patch, planner=planner, kind=kind)


def _describe(
    variant: Variant,
    settings: Settings,
    storage: Storage,
    model: Embedder,
    expected: Mapping[str, Expected],
    layer: int,
) -> dict[str, str]:
    """Return what determines the vectors, apart from files and windows."""
    described = settings.describe(variant.name, variant)
    described = {key: value for key, value in described.items() if key not in OF_SEED} | storage.describe()
    described |= {"layer": str(layer % variant.depth), "weights_sha256": hash_weights(model.state_dict())[:16]}
    described |= {f"bands of {name}": ", ".join(one.bands) for name, one in expected.items()}
    described["inputs_sha256"] = hash_content(model.numbers())
    if model.pooling is not None:
        described["temporal_pooling"] = model.pooling.describe()
    return described


def _settle_dates(model: Embedder, jobs: Sequence[Job]) -> None:
    """Tell a model the number of dates of the scenes.

    Raises:
        DataError: A scene has another number of dates than the model expects or, if the vectors of dates are
            concatenated, than the first scene.
    """
    if model.pooling is None or not jobs:
        return
    counts = [max(job.dates.values()) for job in jobs]
    fixed = model.pooling.taken
    if fixed is None and model.pooling.widen(1, 2) > 1:
        fixed = DatesTaken(counts[0], f"temporal_pooling: {model.pooling.pooling}, as the first scene has")
    refuse_dates(jobs, fixed)
    model.take_dates(counts[0])


def _describe_dates(job: Job) -> dict[str, str]:
    """Return the days of a series, if its files name them."""
    days = [taken_on(path) for path in job.files_of(next(iter(job.inputs)))] if job.later else []
    return {"dates": ", ".join(map(str, days))} if any(days) else {}


def _refuse_folder(job: Job) -> None:
    """Raise a ConfigError if a Zarr store would replace a folder that this program has not written."""
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
