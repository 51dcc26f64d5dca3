"""Token ids of chips in folders: one file for each modality."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.checkpoints import hash_weights
from terramind_plugin.model.modalities import Modality
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.pretrain.loading import SYMMETRIES, ChipReader, apply_symmetry, to_image_tensor
from terramind_plugin.pretrain.token_store import ENDING, Recipe, StoredChip, TokenFile, is_out_of_date, write_tokens
from terramind_plugin.samples.layout import ChipFolder
from terramind_plugin.system.process import refuse_inputs
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.variants import tokenizers_of

BATCH_SIZE = 64
"""Number of tiles that are encoded at once."""


def tokenize_folders(
    family: str,
    folders: Mapping[str, ChipFolder],
    out: Path,
    *,
    ckpt_paths: Mapping[str, Path],
    symmetries: int = SYMMETRIES,
    replace: bool = False,
    on_chip: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Path]:
    """Write the token ids of all chips and return the files written; files that are up to date are kept.

    Args:
        family: Family of the tokenizers, e.g. 'terramind_v1' or 'terramind_sim_nano'. A tile has the size of an image
            of the family's models.
        folders: Folders of chips by modality.
        out: Folder to write to, one file for each modality.
        ckpt_paths: Files with weights of tokenizers by modality; the family's weights for the others.
        symmetries: 1, or 8 for all symmetries of a square.
        replace: Write files that are out of date again instead of refusing them.
        on_chip: Called with the modality, the number of chips done and the number of all chips.

    Raises:
        ConfigError: The family has no tokenizer of a modality, or a file to write holds weights of a tokenizer.
        DataError: An existing store is out of date, or a chip cannot be read or is smaller than a tile.
        WeightsError: The weights are missing or do not fit.
    """
    known = tokenizers_of(family)
    for name in [*folders, *ckpt_paths]:
        if name not in known or name not in folders:
            raise ConfigError(f"{name} has no tokenizer in {family}, or no folder: {', '.join(known)}.")
    written = []
    refuse_inputs((out / f"{name}{ENDING}" for name in folders), ckpt_paths.values())
    for name, folder in folders.items():
        path = out / f"{name}{ENDING}"
        tokenizer, recipe = build_tokenizer(family, name, ckpt_paths, symmetries)
        names = folder.names()
        check = partial(TokenFile.check, names=names, folder=folder)
        if path.is_file() and not is_out_of_date(out, folder.modality, recipe, check, replace):
            continue
        _write(path, folder, names, tokenizer, recipe, on_chip)
        written.append(path)
    return written


def build_tokenizer(
    family: str, name: str, ckpt_paths: Mapping[str, Path], symmetries: int
) -> tuple[ImageTokenizer, Recipe]:
    """Return the tokenizer of a modality without its decoder, and the recipe of its token ids.

    Args:
        family: Family of the tokenizers.
        name: The modality.
        ckpt_paths: Files with weights of tokenizers by modality; the family's weights for the others.
        symmetries: 1, or 8 for all symmetries of a square.

    Raises:
        WeightsError: The weights are missing or do not fit.
    """
    tile = next(variant.img_size for variant in VARIANTS.values() if variant.family == family)
    variant = tokenizers_of(family)[name]
    tokenizer = build_image_tokenizer(
        variant.name, pretrained=name not in ckpt_paths, ckpt_path=ckpt_paths.get(name), decoder=False
    )
    return tokenizer, Recipe(variant.name, hash_weights(tokenizer.state_dict()), tile, symmetries)


def _write(
    path: Path,
    folder: ChipFolder,
    names: list[str],
    tokenizer: ImageTokenizer,
    recipe: Recipe,
    on_chip: Callable[[str, int, int], None],
) -> None:
    """Write the tokens of one modality."""
    reader = ChipReader()

    def read() -> Iterator[tuple[StoredChip, NDArray[Any]]]:
        for name in names:
            chip = reader.read(folder, name)
            rows, columns = count_tiles(chip, recipe.tile, str(folder.path(name)), "Remove it.")
            yield StoredChip.describe(folder.path(name), name, rows, columns), chip

    chips, ids = encode_chips(
        tokenizer,
        folder.modality,
        read(),
        recipe,
        lambda done: on_chip(folder.modality.name, done, len(names)),
    )
    write_tokens(path, ids, recipe, chips)


def count_tiles(image: NDArray[Any], tile: int, shown: str, advice: str) -> tuple[int, int]:
    """Return the numbers of rows and columns of whole tiles of an image [bands, H, W].

    Args:
        image: The image.
        tile: Side of a tile in pixels.
        shown: Name of the image for the message.
        advice: Advice for the message about an image that is too small.

    Raises:
        DataError: The image is smaller than a tile.
    """
    rows, columns = image.shape[1] // tile, image.shape[2] // tile
    if not rows * columns:
        raise DataError(
            f"{shown} has {image.shape[1]} x {image.shape[2]} pixels, smaller than a tile of {tile} x {tile}. {advice}"
        )
    return rows, columns


def encode_chips(
    tokenizer: ImageTokenizer,
    modality: Modality,
    chips: Iterable[tuple[StoredChip, NDArray[Any] | None]],
    recipe: Recipe,
    on_chip: Callable[[int], None],
) -> tuple[list[StoredChip], NDArray[Any]]:
    """Return the entries of chips, and the token ids of all their tiles [tiles, symmetries, rows, columns], uint16.

    Tiles of several chips are encoded together; images are read when they are needed.

    Args:
        tokenizer: Tokenizer of the modality.
        modality: Modality of the chips.
        chips: Entry and image [bands, H, W] of each chip; None for one without data, which has no tiles.
        recipe: Recipe with the tiling.
        on_chip: Called with the number of chips read so far.
    """
    entries: list[StoredChip] = []
    made: list[NDArray[Any]] = []
    waiting: list[NDArray[Any]] = []
    for entry, image in chips:
        entries.append(entry)
        for tile in () if image is None else cut_tiles(image, recipe.tile):
            waiting += [apply_symmetry(tile, number) for number in range(recipe.symmetries)]
        while len(waiting) >= BATCH_SIZE:
            made.append(encode_tiles(tokenizer, modality, waiting[:BATCH_SIZE]))
            del waiting[:BATCH_SIZE]
        on_chip(len(entries))
    if waiting:
        made.append(encode_tiles(tokenizer, modality, waiting))
    if not made:
        return entries, np.zeros((0, recipe.symmetries, 1, 1), np.uint16)
    ids = np.concatenate(made)
    return entries, ids.reshape(-1, recipe.symmetries, *ids.shape[1:])


def cut_tiles(chip: NDArray[Any], side: int) -> Iterator[NDArray[Any]]:
    """Yield the whole tiles [bands, side, side] of a chip [bands, H, W], row by row from the upper left."""
    for row in range(0, chip.shape[1] - side + 1, side):
        for column in range(0, chip.shape[2] - side + 1, side):
            yield chip[:, row : row + side, column : column + side]


@torch.inference_mode()
def encode_tiles(tokenizer: ImageTokenizer, modality: Modality, tiles: list[NDArray[Any]]) -> NDArray[Any]:
    """Return token ids [tiles, rows, columns], uint16.

    Args:
        tokenizer: Tokenizer of the modality.
        modality: Modality of the tiles.
        tiles: Tiles [bands, side, side] of chips from `ChipReader`.
    """
    images = torch.stack([to_image_tensor(np.ascontiguousarray(tile), modality) for tile in tiles])
    return tokenizer.tokenize(images).numpy().astype(np.uint16)
