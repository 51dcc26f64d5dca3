"""Checks of split lists and of the headers of files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from terramind_plugin.errors import DataError, counted
from terramind_plugin.model.dates import DatesTaken
from terramind_plugin.samples.checks.dates import check_dates
from terramind_plugin.samples.checks.findings import Finding, Verdict, some
from terramind_plugin.samples.checks.headers import Header
from terramind_plugin.samples.checks.sample import order_of
from terramind_plugin.samples.layout import LABEL, ONE_A_LINE
from terramind_plugin.samples.plan import DataPlan, ImagePlan, Split


@dataclass(frozen=True)
class PatchGrid:
    """The image sizes that a model accepts."""

    patch: int
    """Height and width of a patch in pixels."""
    padding: str | None = None
    """Mode of torch.nn.functional.pad for images of other sizes; None if they are not padded."""

    def pad(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Return the pixels that TerraTorch adds to height and width to make an even number of patches."""
        step = 2 * self.patch
        return -shape[0] % step, -shape[1] % step


def check_folders(plan: DataPlan) -> Iterator[Finding]:
    """Yield findings about the folders of a configuration."""
    for name, root in plan.roots.items():
        if not os.path.exists(root):
            yield Finding("files: folders", "error", f"{name}: {root} does not exist.", f"Seen from {Path.cwd()}.")


def check_splits(plan: DataPlan) -> Iterator[Finding]:
    """Yield findings about the split files and the files of their samples."""
    for split in plan.splits:
        where = f"files: {split.name} split"
        if split.problem:
            yield Finding(where, "error", f"{split.problem}.", ONE_A_LINE if split.file else "")
            continue
        yield from _check_lines(plan, split, where)
        yield from _check_found(plan, split, where)
    for one, other in combinations(plan.splits, 2):
        ours, theirs = _images_of(one), _images_of(other)
        shared = sorted({theirs[image] for image in ours.keys() & theirs.keys()})
        if shared:
            whole = [split.name for split in (one, other) if split.file is None and not plan.pretraining]
            yield Finding(
                "files: splits",
                "error",
                f"{len(shared)} ids are in {one.name} and {other.name}: {some(shared)}."
                + "".join(f" {name} has no split file and takes every file." for name in whole),
                f"Remove them from one of the splits: results on {other.name} would be too good.",
            )
    train = next((split for split in plan.splits if split.name == "train"), None)
    drops = plan.drop_last and plan.chips_are_samples
    if train is not None and train.samples and drops and len(train.samples) < plan.batch_size:
        yield Finding(
            "files: train split",
            "error",
            f"{counted(len(train.samples), 'sample', 'does/do')} not fill one batch of {plan.batch_size}: no training "
            "step.",
            "Lower batch_size" + ("." if plan.pretraining else ", or set drop_last: false."),
        )


def _images_of(split: Split) -> dict[tuple[str, str], str]:
    """Return the sample id of each image, by the folder (with links resolved) and the name of its file."""
    paths = {path: sample for sample, files in split.samples.items() for key, path in files.items() if key != LABEL}
    folders = {folder: os.path.realpath(folder) for folder in {path.parent for path in paths}}
    return {(folders[path.parent], path.name): sample for path, sample in paths.items()}


def _check_lines(plan: DataPlan, split: Split, where: str) -> Iterator[Finding]:
    if split.file is None:
        return
    blank = sum(not line.strip() for line in split.content.lines)
    if blank and not plan.own:
        yield Finding(
            where,
            "error",
            f"{split.file} has {counted(blank, 'blank line')}; each one adds a wrong sample.",
            "Remove them, or use terramind_plugin.TerraMindDataModule, which skips them.",
        )
    elif blank:
        yield Finding(where, "note", f"{split.file} has {counted(blank, 'blank line')}, skipped.")
    if split.content.windows_ends:
        yield Finding(where, "note", f"{split.file} has Windows line ends, ignored.")
    repeated = [name for name, count in Counter(split.content.ids).items() if count > 1]
    if repeated:
        yield Finding(
            where,
            "warning",
            f"{split.file} names {len(repeated)} ids more than once: {some(repeated)}.",
            "Remove the copies" + ("; each id is used once." if plan.own else "; TerraTorch uses each of them."),
        )


def _check_found(plan: DataPlan, split: Split, where: str) -> Iterator[Finding]:
    missing = {
        sample: [key for key in split.needed if key not in files]
        for sample, files in split.samples.items()
        if any(key not in files for key in split.needed)
    }
    if plan.missing_allowed:
        images = [key for key in split.needed if key != LABEL]
        missing = {
            sample: keys for sample, keys in missing.items() if LABEL in keys or all(key in keys for key in images)
        }
    if missing and split.file is not None:
        names = [f"{sample} ({', '.join(keys)})" for sample, keys in missing.items()]
        yield Finding(
            where,
            "error",
            f"{len(missing)} of {len(split.samples)} ids lack a file of some modality: {some(names)}.",
            f"Check {_keys_of_files(plan)}, or remove the ids."
            + ("" if plan.own else " TerraTorch leaves them out without a message."),
        )
    elif missing:
        yield Finding(
            where,
            "warning",
            f"{len(missing)} of {len(split.samples)} files have no counterpart: {some(list(missing))}.",
        )
    if not split.samples:
        yield Finding(where, "error", "no sample.", f"Check {_keys_of_files(plan)}.")
    if split.several:
        (sample, key), files = next(iter(split.several.items()))
        yield Finding(
            where,
            "error",
            f"{len(split.several)} ids stand for several files, e.g. {sample} for {key}: {some(files)}.",
            "Make the id or image_grep more specific.",
        )


def _keys_of_files(plan: DataPlan) -> str:
    return "folders and suffixes" if plan.pretraining else "the roots, image_grep and label_grep"


def check_headers(
    plan: DataPlan,
    headers: Mapping[Path, Header],
    grid: PatchGrid | None = None,
    taken: DatesTaken | None = None,
) -> Iterator[Finding]:
    """Yield findings about headers: damaged files, wrong bands, pairs on different grids, mixed sizes.

    Args:
        plan: The data set as configured.
        headers: Headers of its files.
        grid: Sizes that the model accepts; None if unknown.
        taken: Number of dates that the model expects; None for any.
    """
    broken = [header for header in headers.values() if header.problem]
    if broken:
        shown = some([f"{header.path} ({header.problem})" for header in broken], 2)
        yield Finding(
            "files: readable",
            "error",
            f"{len(broken)} of {len(headers)} files: {shown}.",
            "Copy or download them again.",
        )
    small = [h for h in headers.values() if not h.problem and min(h.shape) < plan.smallest]
    if small:
        yield Finding(
            "files: size",
            "error",
            f"{len(small)} of {len(headers)} files are smaller than {plan.smallest} x {plan.smallest} pixels, e.g. "
            f"{small[0].path}: {list(small[0].shape)}.",
            "Remove them" + (", or lower crop." if plan.chips_are_samples else "."),
        )
    yield from _check_pairs(plan, headers)
    yield from _check_sizes(plan, headers, grid)
    yield from check_dates(plan, headers, taken)
    yield from _check_georeference(headers)
    for image in plan.images:
        paths = [files[image.name] for _, _, files in plan.chips() if image.name in files]
        own = [headers[path] for path in paths if path in headers and not headers[path].problem]
        count = len(image.file_bands) or len(image.means)
        wrong = [h for h in own if count and (h.bands % count if image.dates else h.bands != count)]
        if wrong:
            yield Finding(
                f"files: {image.name} bands",
                "error",
                f"{len(wrong)} of {len(own)} files do not have {counted(count, 'band')}, "
                f"e.g. {wrong[0].path}: {wrong[0].bands}.",
                f"Name the bands of the files in dataset_bands: {{{image.name}: [...]}}.",
            )
        yield from _check_names(image, [header for header in own if header not in wrong], plan.own)


def _check_names(image: ImagePlan, headers: Sequence[Header], own: bool) -> Iterator[Finding]:
    """Yield files whose names of bands differ from the configuration."""
    problems = []
    for header in headers:
        try:
            order_of(image, header.path, header.descriptions)
        except DataError as error:
            problems.append(str(error))
    if problems:
        yield Finding(
            f"files: {image.name} band names",
            "error" if own else "warning",
            f"{len(problems)} of {len(headers)} files: {problems[0]}",
            "" if own else "TerraTorch's data module reads bands by position, whatever their names.",
        )


def _check_georeference(headers: Mapping[Path, Header]) -> Iterator[Finding]:
    """Yield files without a usable georeference, which cannot be mapped."""
    nowhere = [h for h in headers.values() if not h.problem and (h.lies_nowhere or h.indirect)]
    if nowhere:
        how = "only ground control points or an RPC model" if nowhere[0].indirect else "pixels without a size"
        yield Finding(
            "files: places",
            "warning",
            f"{len(nowhere)} of {len(headers)} files have {how}, e.g. {nowhere[0].path}: training works, "
            "but predict and map refuse them.",
            "Warp them with gdalwarp." if nowhere[0].indirect else "Correct them: gdal_edit.py -a_ullr L T R B.",
        )


def _check_pairs(plan: DataPlan, headers: Mapping[Path, Header]) -> Iterator[Finding]:
    problems: dict[str, list[str]] = {"size": [], "crs": [], "place": []}
    for _, sample, files in plan.chips():
        rasters = _rasters_of(files, headers)
        key = next(iter(rasters), "")
        for other, header in list(rasters.items())[1:]:
            first, text = rasters[key], f"{sample}: {key} and {other}"
            if header.shape != first.shape:
                problems["size"].append(f"{text}, {list(first.shape)} and {list(header.shape)}")
            elif header.placed and first.placed and header.crs != first.crs:
                problems["crs"].append(f"{text}, {str(first.crs)[:20]} and {str(header.crs)[:20]}")
            elif header.placed and first.placed and (shift := first.grid.distance(header.grid)) > 0.5:
                problems["place"].append(f"{text}, {shift:.3g} pixels apart")
    advice = "Resample them to one grid: pixels are matched by row and column."
    for kind, texts in problems.items():
        if texts:
            verdict: Verdict = "error" if kind == "size" else "warning"
            yield Finding(
                f"files: pairs differ in {kind}", verdict, f"{counted(len(texts), 'sample')}, e.g. {texts[0]}.", advice
            )


def _rasters_of(files: Mapping[str, Path], headers: Mapping[Path, Header]) -> dict[str, Header]:
    """Return the headers of a sample's readable rasters, by modality."""
    found = {key: headers[path] for key, path in files.items() if path in headers}
    return {key: header for key, header in found.items() if not header.problem}


def _check_sizes(plan: DataPlan, headers: Mapping[Path, Header], grid: PatchGrid | None) -> Iterator[Finding]:
    for part in plan.splits:
        if part.name in plan.transformed:
            continue
        rasters = [_rasters_of(files, headers) for files in part.samples.values()]
        counts = Counter(next(iter(found.values())).shape for found in rasters if found)
        split = part.name
        if grid is not None:
            yield from _check_patches(f"files: {split} sizes", counts, grid)
        if len(counts) > 1 and plan.batch_size > 1:
            shown = some([f"{count} of {list(shape)}" for shape, count in counts.most_common()])
            yield Finding(
                f"files: {split} sizes",
                "error",
                f"mixed sizes: {shown}.",
                "Cut the files to one size, add a crop to the transforms, or use batch_size: 1.",
            )


def _check_patches(where: str, counts: Counter[tuple[int, int]], grid: PatchGrid) -> Iterator[Finding]:
    """Yield sizes that are not a whole number of patches, and say how the model handles them."""
    odd = [shape for shape in counts if any(grid.pad(shape))]
    if grid.padding is None:
        odd = [shape for shape in counts if shape[0] % grid.patch or shape[1] % grid.patch]
    if not odd:
        return
    samples = sum(counts[shape] for shape in odd)
    # Reflection needs more pixels than it adds on one side.
    small = [s for s in odd if any((added + 1) // 2 >= side for added, side in zip(grid.pad(s), s, strict=True))]
    if grid.padding is None or (grid.padding == "reflect" and small):
        shape = small[0] if grid.padding else odd[0]
        yield Finding(
            where,
            "error",
            f"{samples} samples: the model's patch of {grid.patch} pixels does not divide their size, e.g. "
            f"{list(shape)}" + (", which is too small to be padded by reflection." if grid.padding else "."),
            "Crop or pad the chips, or add a crop to the transforms.",
        )
        return
    padded = [side + added for side, added in zip(odd[0], grid.pad(odd[0]), strict=True)]
    yield Finding(
        where,
        "note",
        f"{samples} samples are not an even number of patches of {grid.patch} pixels, e.g. {list(odd[0])}: "
        f"TerraTorch pads them ({grid.padding}), here to {padded}, and crops the output.",
    )
