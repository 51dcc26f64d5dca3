"""Token ids of all chips of some folders, made once and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.errors import ConfigError, DataError, suggest
from terramind_plugin.model.checkpoints import hash_weights
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.pretrain.chips import TURNS, ChipReader, to_tensor, turn
from terramind_plugin.pretrain.store import ENDING, Recipe, StoredChip, TokenFile, write_tokens
from terramind_plugin.samples.layout import ChipFolder
from terramind_plugin.system import refuse_inputs
from terramind_plugin.tokenizers.image import ImageTokenizer
from terramind_plugin.tokenizers.variants import tokenizers_of


def tokenize_folders(
    family: str,
    folders: Mapping[str, ChipFolder],
    out: Path,
    *,
    ckpt_paths: Mapping[str, Path],
    turns: int = TURNS,
    replace: bool = False,
    batch_size: int = 64,
    on_chip: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[Path]:
    """Write the token ids of all chips and return the files written; what is there and up to date stays.

    Args:
        family: Whose tokenizers, e.g. 'terramind_v1' or 'terramind_sim_nano'. A tile is as large as an image of its
            models.
        folders: By modality.
        out: Folder to write to, one file a modality.
        ckpt_paths: Weights of tokenizers by modality; the family's own for the others.
        turns: 1, or 8 for all symmetries of a square.
        replace: Write anew what is out of date, instead of refusing it.
        batch_size: Tiles that are encoded at once.
        on_chip: Told the modality, the number of chips done and that of all.

    Raises:
        ConfigError: The family is unknown or has no tokenizer of a modality, or a number is not possible, or a file
            to write holds weights of a tokenizer.
        DataError: A store is there and out of date, or a chip cannot be read or is smaller than a tile.
        WeightsError: The weights are not there or do not fit.
    """
    if turns not in (1, TURNS):
        raise ConfigError(f"turns must be 1 or {TURNS}, got {turns}.")
    tile = tile_size(family)
    known = tokenizers_of(family)
    for name in [*folders, *ckpt_paths]:
        if name not in known or name not in folders:
            raise ConfigError(f"{name} has no tokenizer in {family}, or no folder: {', '.join(known)}.")
    written = []
    refuse_inputs((out / f"{name}{ENDING}" for name in folders), ckpt_paths.values())
    for name, folder in folders.items():
        path = out / f"{name}{ENDING}"
        tokenizer = build_image_tokenizer(
            known[name].name, pretrained=name not in ckpt_paths, ckpt_path=ckpt_paths.get(name), decoder=False
        )
        recipe = Recipe(known[name].name, hash_weights(tokenizer.state_dict()), tile, turns)
        names = folder.names()
        if path.is_file() and not _is_out_of_date(out, folder, recipe, names, replace):
            continue
        _write(path, folder, names, tokenizer, recipe, batch_size, on_chip)
        written.append(path)
    return written


def tile_size(family: str) -> int:
    """Return the side in pixels of a family's images.

    Raises:
        ConfigError: The family is unknown.
    """
    sizes = {variant.family: variant.img_size for variant in VARIANTS.values()}
    if family not in sizes:
        raise ConfigError(f"Unknown family '{family}'.{suggest(family, sizes)} Known: {', '.join(sizes)}.")
    return sizes[family]


def _is_out_of_date(out: Path, folder: ChipFolder, recipe: Recipe, names: list[str], replace: bool) -> bool:
    """Return whether to write a file anew; raise a DataError where that was not asked for."""
    try:
        stored = TokenFile(out, folder.modality)
        difference = stored.recipe.difference(recipe)
        if difference is not None:
            raise DataError(f"{stored.path} was made with {difference}; now it is {recipe.difference(stored.recipe)}.")
        stored.check_content()
        stored.check(names)
        stored.check_files(folder, names)
    except DataError as error:
        if replace:
            return True
        raise DataError(f"{error}\nReplace it with --replace, or choose another --out.") from error
    return False


def _write(
    path: Path,
    folder: ChipFolder,
    names: list[str],
    tokenizer: ImageTokenizer,
    recipe: Recipe,
    batch_size: int,
    on_chip: Callable[[str, int, int], None],
) -> None:
    chips: list[StoredChip] = []
    made: list[NDArray] = []
    waiting: list[NDArray] = []
    reader = ChipReader()
    for done, name in enumerate(names, start=1):
        chip = reader.read(folder, name)
        rows, columns = (length // recipe.tile for length in chip.shape[1:])
        if not rows * columns:
            raise DataError(
                f"{folder.path(name)} has {chip.shape[1]} x {chip.shape[2]} pixels, smaller than a tile of "
                f"{recipe.tile} x {recipe.tile}. Remove it."
            )
        chips.append(StoredChip.of(folder.path(name), name, rows, columns))
        for tile in cut_tiles(chip, recipe.tile):
            waiting += [turn(tile, number) for number in range(recipe.turns)]
        while len(waiting) >= batch_size or (waiting and done == len(names)):
            made.append(_encode(tokenizer, folder, waiting[:batch_size]))
            del waiting[:batch_size]
        on_chip(folder.modality.name, done, len(names))
    ids = np.concatenate(made)
    write_tokens(path, ids.reshape(-1, recipe.turns, *ids.shape[1:]), recipe, chips)


def cut_tiles(chip: NDArray, side: int) -> Iterator[NDArray]:
    """Yield the whole tiles [bands, side, side] of a chip [bands, H, W], row by row from the upper left."""
    for row in range(0, chip.shape[1] - side + 1, side):
        for column in range(0, chip.shape[2] - side + 1, side):
            yield chip[:, row : row + side, column : column + side]


@torch.inference_mode()
def _encode(tokenizer: ImageTokenizer, folder: ChipFolder, tiles: list[NDArray]) -> NDArray:
    images = torch.stack([to_tensor(np.ascontiguousarray(tile), folder.modality) for tile in tiles])
    return tokenizer.tokenize(images).numpy().astype(np.uint16)
