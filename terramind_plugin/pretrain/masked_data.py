"""Stage 2: a data module for pixels, stored tokens and positions of the same tiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from terramind_plugin.builders import build_coords_tokenizer
from terramind_plugin.data.guard import guard
from terramind_plugin.errors import ConfigError, DataError, one_line
from terramind_plugin.model.modalities import resolve
from terramind_plugin.model.variants import find_variant
from terramind_plugin.pretrain.loading import ChipReader, Draw, PretrainingDataModule, apply_symmetry, to_image_tensor
from terramind_plugin.pretrain.masked_loss import MaskedBatch
from terramind_plugin.pretrain.token_store import TokenFile
from terramind_plugin.raster.reader import Expected, Source
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.samples.layout import ChipFolder, make_folders
from terramind_plugin.tokenizers.coordinates import CoordsTokenizer
from terramind_plugin.tokenizers.variants import tokenizers_of


class Tiles(Dataset[MaskedBatch]):
    """Pixels, token ids and positions of tiles, each as in `MaskedBatch`.

    Args:
        folders: Folders of the pixels.
        tokens: Files of stored tokens.
        names: Ids of the chips.
        reader: Reads the pixels.
        coords: Tokenizer of positions; None for no positions.
    """

    def __init__(
        self,
        folders: Sequence[ChipFolder],
        tokens: Sequence[TokenFile],
        names: Sequence[str],
        reader: ChipReader,
        coords: CoordsTokenizer | None,
    ) -> None:
        self.folders = folders
        self.tokens = tokens
        self.reader = reader
        self.coords = coords
        self.side = tokens[0].recipe.tile
        self.symmetries = min(file.recipe.symmetries for file in tokens)
        self.tiles = [(name, row, column) for name in names for row, column in np.ndindex(self._layout(name))]
        self._positions: dict[str, Tensor] = {}

    def _layout(self, name: str) -> tuple[int, int]:
        """Return rows and columns of a chip's tiles."""
        layouts = {file.path.name: (file.chips[name].rows, file.chips[name].columns) for file in self.tokens}
        if len(set(layouts.values())) > 1:
            shown = ", ".join(f"{file} {rows} x {columns}" for file, (rows, columns) in layouts.items())
            raise DataError(f"{name}: files differ in size, got {shown} tiles. All modalities must be on one grid.")
        return next(iter(layouts.values()))

    def __len__(self) -> int:
        """Return the number of tiles."""
        return len(self.tiles)

    def __getitem__(self, draw: Draw | int) -> MaskedBatch:
        """Return a tile: under a random symmetry for a `Draw`, unchanged for an index."""
        if isinstance(draw, Draw):
            number, symmetry = draw.number, int(draw.random().integers(self.symmetries))
        else:
            number, symmetry = draw, 0
        name, row, column = self.tiles[number]
        top, left = row * self.side, column * self.side
        pixels = {}
        for folder in self.folders:
            chip = self.reader.read(folder, name)
            tile = chip[:, top : top + self.side, left : left + self.side]
            if tile.shape[1:] != (self.side, self.side):
                raise DataError(
                    f"{folder.path(name)} has {chip.shape[1]} x {chip.shape[2]} pixels, smaller than "
                    f"{self.tokens[0].path.name} of that chip. All modalities must be on one grid."
                )
            tile = np.ascontiguousarray(apply_symmetry(tile, symmetry))
            pixels[folder.modality.name] = to_image_tensor(tile, folder.modality)
        tokens = {file.modality.name: torch.from_numpy(file.read(name, row, column, symmetry)) for file in self.tokens}
        return {"pixels": pixels, "tokens": tokens, "sequences": self._sequences(name)}

    def _sequences(self, name: str) -> dict[str, Tensor]:
        """Return the position of a chip's centre as token ids."""
        if self.coords is None:
            return {}
        if name not in self._positions:
            folder = self.folders[0]
            source = Source(folder.path(name), Expected.of(folder.modality))
            centre = source.grid.centre()
            source.close()
            if centre is None:
                raise DataError(f"{folder.path(name)} has no coordinate reference system. Set coords: false.")
            self._positions[name] = self.coords.encode([centre]).ids[0]
        return {"coords": self._positions[name]}


class MaskedDataModule(PretrainingDataModule):
    """Pixels, tokens and positions of the same tiles under one D4 symmetry, for `MaskedModellingTask`.

    Tokens and tiles are those of a store that `terramind tokenize` has made. A resumed run continues with the batch
    that would have come next; every process gets `batch_size` samples.

    Args:
        variant: Name of the model, e.g. 'terramind_sim_nano'.
        folders: Folders of GeoTIFFs by modality, for the modalities that the model gets as standardised pixels.
        tokens: Modalities that the model gets as token ids.
        store: Folder that `terramind tokenize` wrote.
        suffixes: Suffix of the file names by modality, '.tif' by default. The id in split lists is the name before it.
        coords: Whether the position of a chip's centre is in the batch.
        train_split: File with the ids for training; without lists, every twentieth chip is used for validation.
        val_split: File with the ids for validation.
        batch_size: Tiles per step and process.
        num_workers: Number of processes that read.
        keep_in_memory: Read each chip once and keep it, 2 bytes per pixel and band in each worker.
        seed: Seed of order and symmetries.

    Raises:
        ConfigError: A name is unknown, or there are no pixels or no tokens.
        DataError: The store does not exist, or was made for another family.
    """

    chips_are_samples = False

    def __init__(
        self,
        variant: str,
        folders: Mapping[str, str],
        tokens: Sequence[str],
        store: str,
        suffixes: Mapping[str, str] | None = None,
        coords: bool = True,
        train_split: str | None = None,
        val_split: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        keep_in_memory: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(train_split, val_split, batch_size, num_workers, seed)
        if not folders or not tokens:
            raise ConfigError("folders and tokens must each name at least one modality.")
        self.variant = find_variant(variant)
        self.side = self.variant.img_size
        self.folders = make_folders(folders, suffixes or {})
        self.names = [resolve(name).name for name in tokens]
        self.store = store
        self.has_coords = coords
        self.reader = ChipReader(keep_in_memory)

    def setup(self, stage: str) -> None:
        """Find chips and tokens, and check that the tokens are those of the chips."""
        guard(self.trainer)
        train, val = self.choose()
        files = [self._open(name, [*train, *val]) for name in self.names]
        coords = build_coords_tokenizer(family=self.variant.family) if self.has_coords else None
        folders = list(self.folders.values())
        self.train_data: Tiles = Tiles(folders, files, train, self.reader, coords)
        self.val_data: Tiles = Tiles(folders, files, val, self.reader, coords)

    def _open(self, name: str, chips: Sequence[str]) -> TokenFile:
        """Return the stored tokens of a modality after checking that they belong to the model and to these chips."""
        file = TokenFile(self.store, resolve(name))
        wanted = tokenizers_of(self.variant.family).get(name)
        if wanted is None or file.recipe.tokenizer != wanted.name:
            raise DataError(
                f"{file.path} was made with {file.recipe.tokenizer}, not a tokenizer of {self.variant.name}. "
                f"Run terramind tokenize --model {self.variant.name} with another --out."
            )
        file.check(chips, self.folders.get(name))
        return file

    def check_tokens(self) -> Iterator[Finding]:
        """Yield findings about the stored tokens, for `terramind check`."""
        try:
            train, val = self.choose()
        except DataError:
            return  # the checks of the files report these faults in more detail
        files = []
        for name in self.names:
            try:
                files.append(self._open(name, [*train, *val]))
                files[-1].check_content()
            except DataError as error:
                yield Finding(f"tokens: {name}", "error", one_line(error))
        try:
            tiles = len(Tiles(list(self.folders.values()), files, train, self.reader, None)) if files else 0
        except DataError as error:
            yield Finding("tokens: tiles", "error", one_line(error))
            return
        if 0 < tiles < self.batch_size:
            seen = f"{tiles} tiles for training do not fill one batch of {self.batch_size}: no training step."
            yield Finding("tokens: tiles", "error", seen, "Lower batch_size.")
        elif len(files) == len(self.names):
            yield Finding("tokens", "ok", f"{', '.join(self.names)}: {tiles} tiles for training.")
