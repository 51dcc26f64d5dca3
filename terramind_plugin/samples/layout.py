"""Search for the files of each sample of a data set."""

from __future__ import annotations

import glob
import logging
import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from terramind_plugin.errors import ConfigError, DataError, counted, one_line
from terramind_plugin.model.modalities import Modality, resolve
from terramind_plugin.system.files import TABLES, read_table

logger = logging.getLogger("terramind_plugin")

LABEL = "label"
"""Key of a sample's label beside the names of modalities."""
ONE_A_LINE = "It should hold one sample id per line, as UTF-8 text."
SHOWN = 5
"""Maximum number of problems that a message shows."""


@dataclass
class SplitFile:
    """Content of a split file, unchanged."""

    lines: list[str] = field(default_factory=list)
    """All lines without line ends, or the ids of a table."""
    windows_ends: bool = False
    problem: str = ""
    """Reason why the file cannot be used, with its path; empty if there is none."""

    @property
    def ids(self) -> list[str]:
        """Return the sample ids in the file's order, including repeated ones."""
        return [line.strip() for line in self.lines if line.strip()]

    @classmethod
    def read(cls, path: Path) -> SplitFile:
        """Return the content of a file, or the reason why it cannot be used."""
        if not path.is_file():
            return cls(problem=f"{path} does not exist")
        found = cls()
        try:
            if path.suffix in TABLES:
                found.lines = [str(name) for name in read_table(path).index]
            else:
                content = path.read_bytes()
                found.windows_ends = b"\r\n" in content
                found.lines = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            found.problem = f"{path} is not UTF-8 text"
        except (ValueError, OSError) as error:
            found.problem = f"{path} is not a table: {one_line(error)}"
        else:
            found.problem = "" if found.ids else f"{path} names no sample id"
        return found


def read_split(path: str | os.PathLike[str]) -> list[str]:
    """Return the sample ids in a split file, in order; blank lines are skipped, repeated ids used once.

    Args:
        path: Text file with one id per line, or a .csv or .parquet table with the ids in its index (first column).

    Raises:
        DataError: There is no such file, it is not UTF-8 text, or it holds no id.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"Split file not found: {path}. {ONE_A_LINE}")
    found = SplitFile.read(path)
    if found.problem:
        raise DataError(f"Split file {found.problem}. {ONE_A_LINE}")
    unique = list(dict.fromkeys(found.ids))
    if len(unique) < len(found.ids):
        repeated = next(name for name in unique if found.ids.count(name) > 1)
        logger.warning("Split file %s names %d ids more than once, e.g. %s; each is used once.", path,
                       len(found.ids) - len(unique), repeated)  # fmt: skip
    return unique


class Layout:
    """Layout of a data set: a folder for each modality, with files whose names begin with the sample id.

    Files are matched as in TerraTorch's multi-modal data sets.

    Args:
        roots: Folders of modalities and labels. A path that is not a folder, such as a table, counts as empty.
        patterns: Patterns of the text after the sample id in file names, by modality, e.g. '*_S2Hand.tif'.
        prefix: Folder or beginning of names that split files leave out; None or '*' for none.
        substrings: Whether the wildcard of a pattern may stand for text between the id and the ending.
        optional: Modalities that a sample may lack. A sample without any other modality needs one of them.
    """

    def __init__(
        self,
        roots: Mapping[str, str | os.PathLike[str]],
        patterns: Mapping[str, str],
        *,
        prefix: str | None = None,
        substrings: bool = True,
        optional: Sequence[str] = (),
    ) -> None:
        self.folders = {key: str(root) for key, root in roots.items() if os.path.isdir(root)}
        self.patterns = patterns
        self.prefix = "" if prefix in (None, "*") else str(prefix)
        self.substrings = substrings
        self.optional = [key for key in optional if key in self.folders]
        self._names: dict[str, list[str]] = {}

    def listed(self, ids: Iterable[str]) -> list[str]:
        """Return the sample ids for the ids of a split file."""
        return [os.path.join(self.prefix, name) for name in ids]

    def found(self) -> list[str]:
        """Return the ids of the samples that have a file of the first modality, or of any optional modality."""
        ids: dict[str, None] = {}
        for key in self.optional or list(self.folders)[:1]:
            pattern = self.patterns[key]
            for path in sorted(glob.glob(os.path.join(glob.escape(self.folders[key]), (self.prefix or "*") + pattern))):
                name = os.path.basename(path).removesuffix(pattern.strip("*"))
                if "." not in pattern and self.substrings:
                    name = os.path.splitext(name)[0]
                if "/" in self.prefix:
                    name = os.path.join(os.path.basename(os.path.dirname(path)), name)
                ids.setdefault(name)
        return list(ids)

    def files(self, name: str) -> dict[str, list[str]]:
        """Return the files that match a sample id, by modality. A file whose name is exact is the only match."""
        return {key: self._match(os.path.join(root, name), self.patterns[key]) for key, root in self.folders.items()}

    def _match(self, stem: str, pattern: str) -> list[str]:
        if "/" in pattern:
            return sorted(glob.glob(f"{glob.escape(stem)}{pattern}"))
        folder, start = os.path.split(stem)
        if folder not in self._names:
            self._names[folder] = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        names, exact = self._names[folder], start + pattern.strip("*")
        place = bisect_left(names, exact)
        if place < len(names) and names[place] == exact:
            return [os.path.join(folder, exact)]
        return [os.path.join(folder, name) for name in _beginning(names, start, pattern)] if self.substrings else []

    def check(self, ids: Sequence[str], split: str) -> None:
        """Raise an error unless every sample has exactly one file of each modality and label that it needs.

        Args:
            ids: Sample ids.
            split: Name of the split file, for the message.

        Raises:
            DataError: Files are missing, or an id matches several; the message shows the first problems.
        """
        problems: list[str] = []
        concerned = 0
        for name in ids:
            found = list(self._problems_of(name))
            problems += found
            concerned += bool(found)
        if problems:
            more = len(problems) - SHOWN
            shown = "\n  ".join(problems[:SHOWN]) + (f"\n  and {more} more" if more > 0 else "")
            raise DataError(
                f"{split} does not match the data, {counted(len(problems), 'problem')} with {concerned} of "
                f"{len(ids)} samples:\n"
                f"  {shown}\n"
                "Check the data roots, image_grep and label_grep, or remove the ids. "
                "If samples may lack a modality, set allow_missing_modalities: true."
            )

    def _problems_of(self, name: str) -> Iterator[str]:
        found = self.files(name)
        for key, files in found.items():
            if len(files) > 1:
                shown = ", ".join(Path(file).name for file in files[:3])
                yield f"{name}: {len(files)} files for {key} ({shown}); make the id or the suffix more specific"
            elif not files and key not in self.optional:
                yield f"{name}: no file for {key} at {Path(self.folders[key]) / name}{self.patterns[key]}"
        if self.optional and not any(found[key] for key in self.optional):
            yield f"{name}: no file of any modality ({', '.join(self.optional)})"


def _beginning(names: list[str], start: str, pattern: str) -> Iterator[str]:
    """Yield the names of a sorted list that consist of a beginning and an end that matches a pattern."""
    for name in names[bisect_left(names, start) :]:
        if not name.startswith(start):
            return
        if fnmatchcase(name[len(start) :], pattern):
            yield name


@dataclass(frozen=True)
class ChipFolder:
    """The chips of one modality for pre-training: files named by an id and a common suffix."""

    modality: Modality
    folder: Path
    suffix: str
    """Text after the chip's id in a file's name, e.g. '_S2L2AHand.tif'."""

    def path(self, name: str) -> Path:
        """Return the file of a chip."""
        return self.folder / f"{name}{self.suffix}"

    def names(self) -> list[str]:
        """Return the ids of all chips, sorted.

        Raises:
            DataError: The folder holds no chip.
        """
        found = sorted(path.name.removesuffix(self.suffix) for path in self.folder.glob(f"*{self.suffix}"))
        if not found:
            raise DataError(
                f"No file in {self.folder} ends in '{self.suffix}' ({self.modality.name}). Check folder and suffix."
            )
        return found


def make_folders(folders: Mapping[str, str | Path], suffixes: Mapping[str, str]) -> dict[str, ChipFolder]:
    """Return the folders of chips by modality.

    Args:
        folders: Folder of each modality.
        suffixes: Ending of the file names of each modality (default: '.tif').

    Raises:
        ConfigError: A modality is unknown, or has no raster.
    """
    ends = {resolve(name).name: suffix for name, suffix in suffixes.items()}
    made: dict[str, ChipFolder] = {}
    for given, folder in folders.items():
        modality = resolve(given)
        if modality.kind == "sequence":
            raise ConfigError(f"{modality.name} is not a raster: positions come from the georeferences of the others.")
        made[modality.name] = ChipFolder(modality, Path(folder), ends.pop(modality.name, ".tif").lstrip("*"))
    if ends:
        raise ConfigError(f"suffixes names {', '.join(ends)}, which folders lacks: {', '.join(made)}.")
    return made


def choose_chips(folders: Sequence[ChipFolder], split: str | Path | None, *, validation: bool) -> list[str]:
    """Return the ids of the chips of a split that are in all folders.

    Args:
        folders: The folder of each modality.
        split: File with a list of ids. None takes every twentieth chip for validation and the others for training.
        validation: Whether to return the chips for validation.

    Raises:
        DataError: A chip of the list lacks a file, or no chip remains.
    """
    from terramind_plugin.shards.order import VALIDATION_SHARE  # numpy, which --help does not need

    if split is None:
        common = set(folders[0].names()).intersection(*(folder.names() for folder in folders[1:]))
        names = [name for number, name in enumerate(sorted(common)) if (number % VALIDATION_SHARE == 0) == validation]
        if not names:
            kind = "validation" if validation else "training"
            shown = ", ".join(f"{folder.folder}/*{folder.suffix}" for folder in folders)
            raise DataError(f"No chip for {kind}: {len(common)} have files in all of {shown}.")
        return names
    names = read_split(split)
    missing = [folder.path(name) for name in names for folder in folders if not folder.path(name).is_file()]
    if missing:
        raise DataError(
            f"{counted(len(missing), 'file')} of {split} {'is' if len(missing) == 1 else 'are'} not there, the first: "
            f"{missing[0]}. Check folder and suffix, or remove the ids."
        )
    return names
