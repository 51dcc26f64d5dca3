"""Token ids of TerraMesh's samples: a file for each shard and modality, so that a stopped run can be resumed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terramind_plugin.errors import ConfigError, DataError, counted
from terramind_plugin.model.modalities import Modality, find_exact
from terramind_plugin.pretrain.chip_tokens import build_tokenizer, count_tiles, encode_chips
from terramind_plugin.pretrain.loading import SYMMETRIES
from terramind_plugin.pretrain.token_store import (
    ENDING,
    Recipe,
    StoredChip,
    TokenFile,
    is_out_of_date,
    write_tokens,
)
from terramind_plugin.shards.catalogue import SamplePlace, ShardCatalogue
from terramind_plugin.shards.decode import read_image_of
from terramind_plugin.shards.stores import ShardStore
from terramind_plugin.shards.zarr_zip import ZarrGroup
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.variants import tokenizers_of

SPLITS = ("train", "val")


def standardise(image: NDArray[np.float32], modality: Modality, name: str) -> NDArray[Any] | None:
    """Return an image standardised for tokenizers and patch embeddings, with gaps set to the mean; None without data.

    Offsets are not removed: in the published data some images have them and some do not, even within a sample.

    Args:
        image: Image as published [bands, H, W].
        modality: Modality of the image.
        name: Shard and key for messages.

    Returns:
        Standardised [bands, H, W] float32, or class ids [1, H, W] int64.

    Raises:
        DataError: The image has several dates, or holds numbers that are not class ids.
    """
    if image.ndim != 3:
        raise DataError(f"{name} has {image.shape[1]} dates; pre-training takes samples of one date.")
    if modality.kind == "classes":
        count = len(modality.class_names)
        if not ((image >= 0) & (image < count)).all():
            wrong = image[~((image >= 0) & (image < count))][0]
            raise DataError(f"{name} holds {wrong:g}, expected class ids 0 to {count - 1} of {modality.name}.")
        return image.astype(np.int64)
    mean, std = (np.asarray(x, np.float32)[:, None, None] for x in (modality.mean, modality.std))
    standard = (image - mean) / std
    finite = np.isfinite(standard)
    if not finite.any():
        return None
    return standard if finite.all() else np.where(finite, standard, np.float32(0.0))


def find_splits(store: ShardStore, splits: Sequence[str] | None) -> list[str]:
    """Return the splits to tokenise: the given ones, or those of `SPLITS` that exist.

    Raises:
        DataError: There is none.
    """
    found = list(splits) if splits else [name for name in SPLITS if store.list(name)]
    if not found:
        there = ", ".join(entry.name for entry in store.list("")) or "nothing that can be listed"
        raise DataError(f"{store.root} has neither train nor val; it has: {there}. Name the splits with --splits.")
    return found


def find_modalities(store: ShardStore, split: str, known: Mapping[str, Any], names: Sequence[str] | None) -> list[str]:
    """Return the modalities of a split to tokenise: the given ones, or all that have a tokenizer.

    Args:
        store: Store of the data set.
        split: Folder of the split.
        known: Tokenizers by modality.
        names: Names given by the user.

    Raises:
        ConfigError: A modality has no tokenizer, or none is left.
        DataError: The split has no folder of a modality.
    """
    folders = [modality.name for entry in store.list(split) if (modality := find_exact(entry.name)) is not None]
    if not folders:
        raise DataError(f"{store.shown(split)} holds no folder of a modality. Check --data and --splits.")
    chosen = list(names) if names else [name for name in folders if name in known]
    without = [name for name in chosen if (modality := find_exact(name)) is None or modality.name not in known]
    if without or not chosen:
        raise ConfigError(
            f"{', '.join(without) or store.shown(split)} has no tokenizer. Tokenizers are there for {', '.join(known)}."
        )
    return chosen


def tokenize_shards(
    family: str,
    store: ShardStore,
    out: Path,
    *,
    ckpt_paths: Mapping[str, Path],
    splits: Sequence[str] | None = None,
    modalities: Sequence[str] | None = None,
    symmetries: int = SYMMETRIES,
    replace_files: bool = False,
    on_sample: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Path]:
    """Write the token ids of all samples to out/SPLIT/MODALITY/SHARD.safetensors and return the files written.

    Files that are up to date are kept, so that a stopped run continues with the next shard. A sample without any data
    in a modality, such as a radar image of NaN alone, is stored as a sample without tiles.

    Args:
        family: Family of the tokenizers. A tile has the size of an image of the family's models.
        store: Store of the data set.
        out: Folder to write to.
        ckpt_paths: Files with weights of tokenizers by modality; the family's weights for the others.
        splits: Folders of splits; by default those of `SPLITS` that exist.
        modalities: Modalities; by default all that have a tokenizer.
        symmetries: 1, or 8 for all symmetries of a square.
        replace_files: Write files that are out of date again instead of refusing them.
        on_sample: Called with the split and modality, the number of samples done and the number of all samples.

    Raises:
        ConfigError: A name is unknown.
        DataError: Shards are damaged, or an existing file is out of date.
        WeightsError: The weights are missing or do not fit.
    """
    known = tokenizers_of(family)
    written: list[Path] = []
    work = [
        (split, name)
        for split in find_splits(store, splits)
        for name in find_modalities(store, split, known, modalities)
    ]
    unused = set(ckpt_paths) - {find_exact(name).name for _, name in work}  # type: ignore[union-attr]
    if unused:
        raise ConfigError(f"tokenizer_ckpt_path names {', '.join(sorted(unused))}, which is not tokenised here.")
    for split, name in work:
        catalogue = ShardCatalogue(store, split, [name])
        tokenizer, recipe = build_tokenizer(family, catalogue.modalities[name].name, ckpt_paths, symmetries)
        written += _tokenize_split(
            catalogue,
            name,
            tokenizer,
            recipe,
            out,
            replace_files=replace_files,
            on_sample=on_sample,
        )
    return written


def _tokenize_split(
    catalogue: ShardCatalogue,
    name: str,
    tokenizer: ImageTokenizer,
    recipe: Recipe,
    out: Path,
    *,
    replace_files: bool,
    on_sample: Callable[[str, int, int], None],
) -> Iterator[Path]:
    """Write the token ids of one modality of a split, and yield each file written; arguments as `tokenize_shards`."""
    modality = catalogue.modalities[name]
    label, total, done = f"{catalogue.split} {modality.name}", len(catalogue), 0
    for shard, shard_name in enumerate(catalogue.shards):
        target = f"{catalogue.split}/{modality.name}/{shard_name}"
        path = out / f"{target}{ENDING}"
        check = partial(check_sample_keys, keys=catalogue.keys(shard), sizes=catalogue.index(name, shard).sizes)
        if not path.is_file() or is_out_of_date(out, modality, recipe, check, replace_files, target):
            samples = _read_samples(catalogue, name, shard, recipe.tile)

            def report(count: int, before: int = done) -> None:
                on_sample(label, before + count, total)

            chips, ids = encode_chips(tokenizer, modality, samples, recipe, report)
            store = catalogue.store
            write_tokens(path, ids, recipe, chips, {"source": store.root, "revision": str(store.revision or "")})
            yield path
        done += len(catalogue.keys(shard))
        on_sample(label, done, total)


def check_sample_keys(file: TokenFile, keys: Sequence[str], sizes: NDArray[np.int64] | None) -> None:
    """Raise a DataError unless tokens are those of a shard's samples.

    Args:
        file: Stored tokens of the shard.
        keys: Keys of the shard.
        sizes: Sizes of its members in bytes; None to skip the comparison of sizes.
    """
    if list(file.chips) != list(keys):
        other = next((key for key in keys if key not in file.chips), None)
        reason = f"it has no tokens of {other}" if other else f"it has {counted(len(file.chips), 'sample')}"
        raise DataError(f"{file.path} does not belong to this shard of {counted(len(keys), 'sample')}: {reason}.")
    if sizes is not None:
        changed = [key for key, size in zip(keys, sizes, strict=True) if file.chips[key].size != size]
        if changed:
            raise DataError(f"{file.path} is out of date: {changed[0]} has changed since the tokens were made.")


def _read_samples(
    catalogue: ShardCatalogue, name: str, shard: int, tile: int
) -> Iterator[tuple[StoredChip, NDArray[Any] | None]]:
    """Yield each sample's entry, with its standardised image; None without any data."""
    modality = catalogue.modalities[name]
    for row, key in enumerate(catalogue.keys(shard)):
        place = SamplePlace(shard, row)
        content = catalogue.read(name, place)
        assert content is not None  # every shard of this catalogue has its one modality
        shown = catalogue.shown(name, place)
        image = standardise(read_image_of(ZarrGroup(content, shown), modality), modality, shown)
        chip = StoredChip(key, len(content), 0, hashlib.sha256(content).hexdigest(), 0, 0)
        if image is not None:
            rows, columns = count_tiles(image, tile, shown, "Use a model of smaller images.")
            chip = replace(chip, rows=rows, columns=columns)
        yield chip, image
