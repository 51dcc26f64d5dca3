"""The work on one scene: its input files, its windows, and its output files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import date
from multiprocessing import parent_process
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import rasterio

from terramind_plugin._version import NUMERICS, __version__
from terramind_plugin.inference.options import Options
from terramind_plugin.inference.preview import draw_scene
from terramind_plugin.inference.resume import NOT_DECISIVE, FinishedRows, Partial
from terramind_plugin.inference.windows import Plan
from terramind_plugin.raster.complete import GDAL_ERRORS, check_complete
from terramind_plugin.raster.georeference import Grid
from terramind_plugin.raster.reader import THREADS, Expected, Source
from terramind_plugin.raster.series import Series, open_input
from terramind_plugin.raster.writer import Layer, overview_factors, write_layer
from terramind_plugin.system.files import hash_content, is_whole_picture, write_figure, write_text
from terramind_plugin.system.process import refuse_inputs, today

logger = logging.getLogger("terramind_plugin")

RUN_TAG = "terramind_run"
"""Tag with the fingerprint of everything that determines the content of a file."""


@dataclass
class Job:
    """A scene with its input files, its windows and its output files."""

    inputs: dict[str, Path]
    """Files by modality; the first one gives the grid and the name."""
    expected: dict[str, Expected]
    """Bands and units that the files must have, by modality."""
    grid: Grid
    plan: Plan
    folder: Path
    layers: tuple[Layer, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)
    """Everything that decides the results, and the day of writing."""
    warped: tuple[str, ...] = ()
    """Names of the inputs on another grid."""
    positions: dict[str, Sequence[float]] = field(default_factory=dict)
    """Inputs that are not rasters: longitude and latitude, by modality."""
    found: tuple[str, ...] = ()
    """Results that are not rasters: endings of JSON files."""
    later: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Files of a series after the first, in the order of time, by modality."""
    dates: dict[str, int] = field(default_factory=dict)
    """Number of dates of each series, by modality."""
    before: Callable[[int, int], object] = lambda first, last: None
    """Called before rows of the inputs are read, see `Source.before`."""
    identity: Mapping[str, Any] = field(default_factory=dict)
    """Values that change when the inputs change, used instead of the identities of the files."""
    taken: date | None = None
    """Day of the images, if their files do not give it."""

    def files_of(self, name: str) -> tuple[Path, ...]:
        """Return the files of a modality, in the order of time."""
        return (self.inputs[name], *self.later.get(name, ()))

    @property
    def files(self) -> list[Path]:
        """Return the paths of all inputs."""
        return [path for name in self.inputs for path in self.files_of(name)]

    @property
    def path(self) -> Path:
        """Return the file that gives the grid and the name."""
        return next(iter(self.inputs.values()))

    @property
    def stem(self) -> str:
        """Return the beginning of the names of all files."""
        return self.path.stem

    def target(self, layer: Layer) -> Path:
        """Return the path of a raster of the result."""
        return self.folder / f"{self.stem}_{layer.ending}.tif"

    def text(self, ending: str) -> Path:
        """Return the path of a JSON file of the result."""
        return self.folder / f"{self.stem}_{ending}.json"

    @property
    def picture(self) -> Path:
        """Return the path of the picture."""
        return self.folder / f"{self.stem}_{self.record['command']}.png"

    @property
    def draws(self) -> bool:
        """Return whether there is a picture."""
        return True

    @property
    def written(self) -> list[Path]:
        """Return the paths of all files of the result."""
        return [*map(self.target, self.layers), *map(self.text, self.found), *[self.picture] * self.draws]

    @property
    def partial(self) -> Partial:
        """Return the finished rows of the scene."""
        folder = self.folder / f"{self.stem}_{self.record['command']}.partial"
        return Partial(folder, self.layers, self.cells.shape)

    @property
    def cells(self) -> Grid:
        """Return the grid of the result: that of the scene unless the result is coarser."""
        return self.plan.cells(self.grid)

    @contextmanager
    def open(self, *, warn: bool = True) -> Iterator[dict[str, Source | Series]]:
        """Yield the opened inputs.

        Args:
            warn: Whether to warn of values that seem to be in another unit.
        """
        threads = THREADS if parent_process() is None else 1  # a forked process cannot use its parent's
        lock = Lock()

        def before(first: int, last: int) -> None:
            with lock:  # modalities are read at the same time
                self.before(first, last)

        with ExitStack() as stack:
            sources = {
                name: stack.enter_context(
                    closing(open_input(self.files_of(name), self.expected[name], self.grid, threads, warn=warn))
                )
                for name in self.inputs
            }
            for source in sources.values():
                for one in source.sources if isinstance(source, Series) else (source,):
                    one.before = before
            yield sources

    def decide(
        self,
        command: str,
        layers: Sequence[Layer],
        described: Mapping[str, Any],
        options: Options,
        found: Sequence[str] = (),
    ) -> None:
        """Set the results of the scene, and everything that decides them.

        Args:
            command: Name of what is done.
            layers: Rasters of the result.
            described: Description of the model.
            options: How the model goes through the scene.
            found: Endings of the JSON files of the result.

        Raises:
            ConfigError: A file of the result would replace an input.
        """
        self.layers = tuple(layers)
        self.found = tuple(found)
        self.record = {
            "command": command,
            **described,
            **options.describe(),
            "terramind_plugin_version": __version__,
            "numerics": NUMERICS,
            "input": self.identity or {name: _identities(self.files_of(name)) for name in self.inputs},
            "written": today(),
        }
        refuse_inputs(self.written, self.files)

    def fingerprint(self) -> str:
        """Return a hash of everything that determines the results."""
        settled = {key: value for key, value in self.record.items() if key not in NOT_DECISIVE}
        return hash_content(settled)

    def is_done(self) -> bool:
        """Return whether all files of the result exist and have this run's fingerprint."""
        if not all(path.exists() for path in self.written):
            return False
        runs = set()
        try:
            runs |= {self.read_run(self.target(layer)) for layer in self.layers}
            for ending in self.found:
                content = json.loads(self.text(ending).read_text())
                runs.add(content.get(RUN_TAG) if isinstance(content, dict) else None)
        except (*GDAL_ERRORS, ValueError):  # ValueError: no JSON
            return False
        return runs == {self.fingerprint()}

    def is_whole(self) -> bool:
        """Return whether all files of the result can be read to their end."""
        try:
            for layer in self.layers:
                self.check(self.target(layer))
        except (*GDAL_ERRORS, ValueError):
            return False
        return not self.draws or is_whole_picture(self.picture)

    def read_run(self, path: Path) -> str | None:
        """Return the fingerprint in a file of the result.

        Raises:
            RasterioError: The file cannot be read; another error of `GDAL_ERRORS` or a ValueError means the same.
        """
        with rasterio.open(path) as file:
            run: str | None = file.tags().get(RUN_TAG)
            return run

    def check(self, path: Path) -> None:
        """Read a file of the result to its end.

        Raises:
            OSError: The file is damaged or incomplete; another error of `GDAL_ERRORS` or a ValueError means the same.
        """
        check_complete(path, overviews=len(overview_factors(self.cells)))

    def write(self, layer: Layer, partial: FinishedRows, tags: Mapping[str, str]) -> None:
        """Write a file of the result.

        Args:
            layer: Content of the file.
            partial: The finished rows.
            tags: Description of the run.

        Raises:
            DataError: The file cannot be written.
        """
        cog = bool(self.record["cog"])
        write_layer(
            self.target(layer), lambda first, last: partial.read(layer, first, last), layer, self.cells, tags, cog=cog
        )

    def draw(self, sources: Mapping[str, Source | Series], partial: FinishedRows, tags: Mapping[str, str]) -> None:
        """Write the picture.

        Args:
            sources: The opened inputs.
            partial: The finished rows.
            tags: Description of the run.

        Raises:
            DataError: The picture cannot be written.
        """
        found = {}
        for ending in self.found:
            likely = json.loads(self.text(ending).read_text())["positions"]
            found[ending] = np.array([[one["longitude"], one["latitude"]] for one in likely])
        given = {name: np.array(position) for name, position in self.positions.items()}
        layers = [(self.target(layer), layer) for layer in self.layers]
        write_figure(self.picture, draw_scene(sources, layers, tags, given, found))

    def write_found(self, found: Mapping[str, Mapping[str, Any]], record: Mapping[str, Any]) -> None:
        """Write the results that are not rasters, with the position of the scene.

        Args:
            found: Contents by ending.
            record: Record of the run that began the scene.
        """
        centre = self.grid.centre()
        here = {} if centre is None else {"longitude": round(centre[0], 5), "latitude": round(centre[1], 5)}
        for ending in self.found:
            content = {**self._tags(record), **({"centre_of_input": here} if here else {}), **found[ending]}
            write_text(self.text(ending), json.dumps(content, indent=2, allow_nan=False) + "\n")

    def finish(self, partial: FinishedRows, record: Mapping[str, Any], sources: Mapping[str, Source | Series]) -> None:
        """Write the files of a scene whose rows are all finished, and remove the rows.

        Args:
            partial: The rows.
            record: Record of the run that began the scene.
            sources: The opened inputs.

        Raises:
            DataError: A file cannot be written.
        """
        tags = self._tags(record)
        for layer in self.layers:
            self.write(layer, partial, tags)
        if self.draws:
            self.draw(sources, partial, tags)
        partial.remove()

    def _tags(self, record: Mapping[str, Any]) -> dict[str, str]:
        numbers = ("crop", "stride", "margin", "batch_size", "precision")
        own = {"command", "input", *numbers, "cog", "numerics"}
        return {
            **{key: str(value) for key, value in record.items() if key not in own},
            "input": "; ".join(f"{name}: {', '.join(p.name for p in self.files_of(name))}" for name in self.inputs)
            if self.later
            else ", ".join(f"{name}: {path.name}" for name, path in self.inputs.items()),
            "windows": ", ".join(f"{name} {record[name]}" for name in numbers),
            RUN_TAG: self.fingerprint(),
        }


def _identities(paths: Sequence[Path]) -> Any:
    """Return a value that changes when a file of a modality changes."""
    found = [_identity(path) for path in paths]
    return found[0] if len(found) == 1 else found


def _identity(path: Path) -> dict[str, Any]:
    """Return a value that changes when the file changes."""
    if not path.is_file():
        return {"path": str(path)}  # remote
    status = path.stat()
    return {"path": path.name, "bytes": status.st_size, "changed": status.st_mtime_ns}
