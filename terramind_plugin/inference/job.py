"""One scene to work on: its files, its windows, what becomes of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from multiprocessing import parent_process
from pathlib import Path
from typing import Any

import rasterio

from terramind_plugin._version import __version__
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.files import is_whole_picture, write_figure
from terramind_plugin.inference.preview import draw_scene
from terramind_plugin.inference.resume import Partial
from terramind_plugin.raster.complete import GDAL_ERRORS, check_complete
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.reader import Expected, Source
from terramind_plugin.raster.rows import BLOCKS
from terramind_plugin.raster.windows import Plan, plan_windows
from terramind_plugin.raster.writer import Layer, overview_factors, write_layer
from terramind_plugin.system import refuse_inputs, today

RUN_TAG = "terramind_run"
"""Tag that holds the fingerprint of everything that decides on a file."""


@dataclass(frozen=True)
class Options:
    """How to run a model over scenes."""

    out: Path
    """Folder to write to."""
    crop: int = 224
    """Height and width of a window in pixels."""
    stride: int = 176
    """Pixels from one window to the next."""
    margin: int = 8
    """Pixels at the edges of a window that do not count."""
    align: int = 1
    """Window starts are multiples of it."""
    batch_size: int = 8
    precision: str = "32-true"
    """Lightning's name of it."""
    accelerator: str = "auto"
    devices: int = 1
    """Processes on each machine."""
    nodes: int = 1
    """Machines."""
    cog: bool = False
    """Write Cloud-Optimized GeoTIFFs."""
    restart: bool = False
    """Do not go on with an unfinished run."""
    verbose: bool = False
    """Show a progress bar."""

    def check(self) -> None:
        """Raise a ConfigError if a number is not possible."""
        for name in ("batch_size", "devices", "nodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def describe(self) -> dict[str, Any]:
        """Return what decides on the results."""
        names = ("crop", "stride", "margin", "align", "batch_size", "precision", "cog")
        return {name: getattr(self, name) for name in names}


@dataclass
class Job:
    """A scene with its plan."""

    inputs: dict[str, Path]
    """Files by modality; the first gives the grid and the name."""
    expected: dict[str, Expected]
    """What they hold."""
    grid: Grid
    plan: Plan
    folder: Path
    layers: tuple[Layer, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    """What decides on the results, and the date."""
    warped: tuple[str, ...] = ()
    """Inputs that lie on another grid."""

    @property
    def stem(self) -> str:
        """Beginning of the names of all files."""
        return next(iter(self.inputs.values())).stem

    def target(self, layer: Layer) -> Path:
        """Return the path of a file of the result."""
        return self.folder / f"{self.stem}_{layer.ending}.tif"

    @property
    def picture(self) -> Path:
        """Path of the picture."""
        return self.folder / f"{self.stem}_{self.record['command']}.png"

    @property
    def written(self) -> list[Path]:
        """Paths of all files of the result."""
        return [*map(self.target, self.layers), self.picture]

    @property
    def partial(self) -> Partial:
        """What is finished."""
        folder = self.folder / f"{self.stem}_{self.record['command']}.partial"
        return Partial(folder, self.layers, self.grid.shape)

    @contextmanager
    def open(self) -> Iterator[dict[str, Source]]:
        """Give the opened inputs."""
        threads = BLOCKS if parent_process() is None else 1  # a forked process cannot use its parent's
        with ExitStack() as stack:
            yield {
                name: stack.enter_context(closing(Source(path, self.expected[name], self.grid, threads)))
                for name, path in self.inputs.items()
            }

    def decide(self, command: str, layers: Sequence[Layer], described: Mapping[str, Any], options: Options) -> None:
        """Set what becomes of the scene.

        Args:
            command: Name of what is done.
            layers: Files of the result.
            described: What is known of the model.
            options: How it runs.

        Raises:
            ConfigError: A file of the result would replace an input.
        """
        self.layers = tuple(layers)
        self.record = {
            "command": command,
            **described,
            **options.describe(),
            "terramind_plugin_version": __version__,
            "input": {name: _identity(path) for name, path in self.inputs.items()},
            "date": today(),
        }
        refuse_inputs(self.written, self.inputs.values())

    def fingerprint(self) -> str:
        """Return a hash of everything that decides on the results."""
        settled = {key: value for key, value in self.record.items() if key != "date"}
        return hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()[:16]

    def is_complete(self) -> bool:
        """Return whether all files of the result are there, were made by the same run and can be read to their end."""
        if not all(path.is_file() for path in self.written):
            return False
        count = len(overview_factors(self.grid))
        try:
            for layer in self.layers:
                with rasterio.open(self.target(layer)) as file:
                    if file.tags().get(RUN_TAG) != self.fingerprint():
                        return False
                check_complete(self.target(layer), overviews=count)
        except GDAL_ERRORS:
            return False
        return is_whole_picture(self.picture)

    def finish(self, partial: Partial, record: Mapping[str, Any], sources: Mapping[str, Source]) -> None:
        """Write the files of a scene whose rows are all finished, and forget the rows.

        Args:
            partial: The rows.
            record: Of the run that began them.
            sources: The opened inputs.

        Raises:
            DataError: A file cannot be written.
        """
        tags = self._tags(record)
        for layer in self.layers:
            write_layer(
                self.target(layer),
                lambda first, last, layer=layer: partial.read(layer, first, last),  # type: ignore[misc]
                layer,
                self.grid,
                tags,
                cog=bool(record["cog"]),
            )
        write_figure(self.picture, draw_scene(sources, [(self.target(x), x) for x in self.layers], tags))
        partial.remove()

    def _tags(self, record: Mapping[str, Any]) -> dict[str, str]:
        numbers = ("crop", "stride", "margin", "batch_size", "precision")
        own = {"command", "input", *numbers, "align", "cog"}
        return {
            **{key: str(value) for key, value in record.items() if key not in own},
            "input": ", ".join(f"{name}: {path.name}" for name, path in self.inputs.items()),
            "windows": ", ".join(f"{name} {record[name]}" for name in numbers),
            RUN_TAG: self.fingerprint(),
        }


def plan_job(inputs: Mapping[str, Path], expected: Mapping[str, Expected], options: Options, multiple: int) -> Job:
    """Return a scene with its plan, after a look at the headers of its files.

    Args:
        inputs: Files by modality, the one that gives the grid first.
        expected: What they hold.
        options: How to run.
        multiple: Heights and widths that the model takes are multiples of it.

    Raises:
        ConfigError: The windows are not possible.
        DataError: A file cannot be used.
    """
    options.check()
    grid: Grid | None = None
    warped = []
    for name, path in inputs.items():
        source = Source(path, expected[name], grid)
        grid = grid or source.grid
        warped += [name] if source.warped else []
        source.close()
    assert grid is not None  # there is at least one input
    plan = plan_windows(
        *grid.shape, options.crop, options.stride, options.margin, multiple=multiple, align=options.align
    )
    if options.out.exists() and not options.out.is_dir():
        raise ConfigError(f"Cannot write into {options.out}: it is a file. Give a folder.")
    return Job(dict(inputs), dict(expected), grid, plan, options.out, warped=tuple(warped))


def check_names(jobs: Sequence[Job]) -> None:
    """Raise if results of two scenes would have one name.

    Raises:
        DataError: The message names both.
    """
    seen: dict[str, Path] = {}
    for job in jobs:
        path = next(iter(job.inputs.values()))
        if job.stem in seen:
            raise DataError(
                f"{seen[job.stem]} and {path} would both be written to {job.folder / job.stem}_*. "
                "Give them to two commands with another --out each."
            )
        seen[job.stem] = path


def _identity(path: Path) -> dict[str, Any]:
    """Return what changes when a file does."""
    if not path.is_file():
        return {"path": str(path)}  # remote
    status = path.stat()
    return {"path": path.name, "bytes": status.st_size, "changed": status.st_mtime_ns}
