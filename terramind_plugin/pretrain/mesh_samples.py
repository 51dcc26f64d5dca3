"""Samples of TerraMesh for tokenizers, masked modelling and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import Modality
from terramind_plugin.pretrain.loading import SYMMETRIES, Draw, apply_symmetry, to_image_tensor
from terramind_plugin.pretrain.masked_loss import MaskedBatch
from terramind_plugin.pretrain.mesh_tokens import check_sample_keys, standardise
from terramind_plugin.pretrain.token_store import TokenFile
from terramind_plugin.pretrain.tokenizer_data import VALIDATION_SEED, draw_window
from terramind_plugin.shards.catalogue import SamplePlace
from terramind_plugin.shards.samples import Read, TerraMeshSamples
from terramind_plugin.tokenizers.coordinates import CoordsTokenizer
from terramind_plugin.tokenizers.variants import tokenizers_of

OPEN_FILES = 64
"""Maximum number of files of tokens that stay open."""


class MeshDataset(Dataset[Any]):
    """Samples of a split; a damaged sample is None if damaged samples are skipped.

    Args:
        samples: The split.
        validation: Whether indices are places in the order of epoch 0; in training they are numbers of samples.
    """

    def __init__(self, samples: TerraMeshSamples, validation: bool) -> None:
        self.samples = samples
        self.listed = samples.order(0) if validation else None
        self.count = len(samples.order(0)) if self.listed is None else len(self.listed)

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        return self.count

    def draw_order(self, epoch: int) -> NDArray[np.int64]:
        """Return the numbers of an epoch's samples in their order."""
        return self.samples.order(epoch)

    @staticmethod
    def collate(samples: Sequence[Any]) -> Any:
        """Return a batch of the samples that could be read.

        Raises:
            DataError: None of them could be read.
        """
        there = [sample for sample in samples if sample is not None]
        if not there:
            raise DataError(f"None of the {len(samples)} samples of a batch could be read. See the warnings above.")
        return default_collate(there)

    def read(self, draw: Draw | int) -> tuple[Read | None, np.random.Generator, int]:
        """Return a sample, the random generator for its crop, and the number of symmetries to draw from."""
        if isinstance(draw, Draw):
            return self.samples.read(draw.number), draw.random(), SYMMETRIES
        assert self.listed is not None
        return self.samples.read(int(self.listed[draw])), np.random.default_rng([VALIDATION_SEED, draw]), 1

    def shown(self, read: Read, name: str) -> str:
        """Return modality and key of a sample for messages."""
        catalogue = self.samples.catalogue
        return f"{catalogue.store.shown(catalogue.split)}, {name}: {read.key}"


class MeshCrops(MeshDataset):
    """Crops of one modality for tokenizers: {'image': standardised [bands, crop, crop] or class ids [crop, crop]}.

    Args:
        samples: The split, with one modality.
        validation: Whether the samples are for validation.
        crop: Side in pixels.
    """

    def __init__(self, samples: TerraMeshSamples, validation: bool, crop: int) -> None:
        super().__init__(samples, validation)
        self.crop = crop
        ((self.name, self.modality),) = samples.catalogue.modalities.items()

    def __getitem__(self, draw: Draw | int) -> dict[str, Tensor] | None:
        """Return a random crop under a random symmetry, the same crop in every validation; None without data."""
        read, random, symmetries = self.read(draw)
        if read is None:
            return None
        image = standardise(read.images[self.name], self.modality, self.shown(read, self.name))
        if image is None:
            self.samples.damaged += 1
            return None
        window = draw_window(random, image.shape[1:], self.crop, self.shown(read, self.name))
        turned = apply_symmetry(image[:, *window], int(random.integers(symmetries)))
        return {"image": to_image_tensor(np.ascontiguousarray(turned), self.modality)}


class MeshImages(MeshDataset):
    """Several modalities for evaluation: {'image', 'modality_mask', 'filename', 'center'}.

    Images are standardised [bands, H, W]; a missing one is NaN and False in 'modality_mask'.

    Args:
        samples: The split.
        validation: Whether the samples are for validation.
        crop: Side in pixels of the middle that is used; None for all.
    """

    def __init__(self, samples: TerraMeshSamples, validation: bool, crop: int | None) -> None:
        super().__init__(samples, validation)
        self.crop = crop

    def __getitem__(self, draw: Draw | int) -> dict[str, Any] | None:
        """Return a sample without symmetries."""
        read, _, _ = self.read(draw)
        if read is None:
            return None
        images: dict[str, Tensor] = {}
        mask: dict[str, Tensor] = {}
        shape = next(iter(read.images.values())).shape[-2:]
        for name, modality in self.samples.catalogue.modalities.items():
            stored = read.images.get(name)
            image = None if stored is None else standardise(stored, modality, self.shown(read, name))
            if image is None:
                image = np.full((len(modality.bands), *shape), np.nan, np.float32)
                mask[name] = torch.tensor(False)
            else:
                mask[name] = torch.tensor(True)
            images[name] = torch.from_numpy(np.ascontiguousarray(self._middle(image, read, name), np.float32))
        centre = torch.tensor(read.centre, dtype=torch.float64)
        return {"image": images, "modality_mask": mask, "filename": read.key, "center": centre}

    def _middle(self, image: NDArray[Any], read: Read, name: str) -> NDArray[Any]:
        if self.crop is None:
            return image
        if min(image.shape[1:]) < self.crop:
            raise DataError(
                f"{self.shown(read, name)} has {image.shape[1]} x {image.shape[2]} pixels; a crop of {self.crop} does "
                "not fit. Lower crop."
            )
        row, column = ((length - self.crop) // 2 for length in image.shape[1:])
        return image[:, row : row + self.crop, column : column + self.crop]


class MeshTokens:
    """Stored tokens of a split's shards, opened when they are needed.

    Args:
        store: Folder that `terramind tokenize` wrote.
        split: Folder of the split.
        modalities: Modalities of the tokens.
        samples: The split.
        family: Family of the model.

    Raises:
        ConfigError: The family has no tokenizer of a modality.
        DataError: Tokens are missing.
    """

    def __init__(
        self, store: str | Path, split: str, modalities: Sequence[Modality], samples: TerraMeshSamples, family: str
    ) -> None:
        self.store, self.split, self.family = Path(store), split, family
        self.modalities = {modality.name: modality for modality in modalities}
        self.catalogue = samples.catalogue
        self.there: dict[str, list[bool]] = {}
        known = tokenizers_of(family)
        for name in self.modalities:
            if name not in known:
                raise ConfigError(f"{name} has no tokenizer in {family}: {', '.join(known)}.")
            self.there[name] = [self._file(name, shard).is_file() for shard in range(len(self.catalogue.shards))]
            self._check_complete(name)
        self._open = lru_cache(OPEN_FILES)(self._open_file)
        first = next((name, shard) for name, found in self.there.items() for shard, has in enumerate(found) if has)
        recipe = self._open(*first).recipe
        self.tile, self.symmetries = recipe.tile, recipe.symmetries
        chips = [chip for chip in self._open(*first).chips.values() if chip.rows]
        self.rows, self.columns = (chips[0].rows, chips[0].columns) if chips else (1, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_open"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._open = lru_cache(OPEN_FILES)(self._open_file)

    def _target(self, name: str, shard: int) -> str:
        return f"{self.split}/{name}/{self.catalogue.shards[shard]}"

    def _file(self, name: str, shard: int) -> Path:
        return self.store / f"{self._target(name, shard)}.safetensors"

    def _check_complete(self, name: str) -> None:
        """Raise a DataError if no shard has tokens, or only some shards of a subset have tokens."""
        found, subsets = self.there[name], self.catalogue.subsets
        for shard, has in enumerate(found):
            others = any(other for other, subset in zip(found, subsets, strict=True) if subset == subsets[shard])
            if not has and (others or not any(found)):
                raise DataError(
                    f"{self._file(name, shard)} is not there. Make it: terramind tokenize --data terramesh:"
                    f"{self.catalogue.store.root} --out {self.store}."
                )

    def _open_file(self, name: str, shard: int) -> TokenFile:
        file = TokenFile(self.store, self.modalities[name], self._target(name, shard))
        wanted = tokenizers_of(self.family)[name].name
        if file.recipe.tokenizer != wanted:
            raise DataError(
                f"{file.path} was made with {file.recipe.tokenizer}, expected {wanted}. Run terramind tokenize with "
                "the model to be trained and another --out."
            )
        read_as = next((key for key, one in self.catalogue.modalities.items() if one.name == name), None)
        is_read = read_as is not None and self.catalogue.path(read_as, shard) is not None
        sizes = self.catalogue.index(str(read_as), shard).sizes if is_read else None
        check_sample_keys(file, self.catalogue.keys(shard), sizes)
        return file

    def read(self, name: str, place: SamplePlace, tile: tuple[int, int], symmetry: int) -> NDArray[Any] | None:
        """Return the token ids of a tile [rows, columns]; None if the sample lacks the modality."""
        if not self.there[name][place.shard]:
            return None
        file, key = self._open(name, place.shard), self.catalogue.key(place)
        chip = file.chips[key]
        if not chip.rows:
            return None
        if (chip.rows, chip.columns) != (self.rows, self.columns) or file.recipe.tile != self.tile:
            raise DataError(
                f"{file.path}: {key} has {chip.rows} x {chip.columns} tiles of {file.recipe.tile} pixels, others have "
                f"{self.rows} x {self.columns} of {self.tile}. All samples must have the same size."
            )
        return file.read(key, *tile, symmetry % file.recipe.symmetries)

    def check(self) -> None:
        """Raise a DataError if the tokens of some shard are damaged or out of date."""
        for name, found in self.there.items():
            for shard, has in enumerate(found):
                if has:
                    self._open_file(name, shard).check_content()


class MeshTiles(MeshDataset):
    """Pixels, token ids and positions of tiles for masked modelling, each as in `MaskedBatch`.

    Args:
        samples: The split, with the modalities that the model gets as pixels.
        validation: Whether the samples are for validation.
        tokens: Stored tokens of the split.
        coords: Tokenizer of positions; None for no positions.
    """

    def __init__(
        self, samples: TerraMeshSamples, validation: bool, tokens: MeshTokens, coords: CoordsTokenizer | None
    ) -> None:
        super().__init__(samples, validation)
        self.tokens, self.coords = tokens, coords
        self.tiles = tokens.rows * tokens.columns

    def __len__(self) -> int:
        """Return the number of tiles of an epoch."""
        return self.count * self.tiles

    def draw_order(self, epoch: int) -> NDArray[np.int64]:
        """Return the numbers of an epoch's tiles: sample x tiles of a sample + tile, one tile of a sample at a time."""
        samples = self.samples.order(epoch)
        first = np.random.default_rng([self.samples.seed, epoch]).integers(self.tiles, size=len(samples))
        return np.concatenate([samples * self.tiles + (first + turn) % self.tiles for turn in range(self.tiles)])

    def __getitem__(self, draw: Draw | int) -> MaskedBatch | None:
        """Return a tile, under a random symmetry in training and unchanged in validation."""
        if isinstance(draw, Draw):
            number, tile = divmod(draw.number, self.tiles)
            symmetry = int(draw.random().integers(self.tokens.symmetries))
        else:
            assert self.listed is not None
            place_in_order, tile = divmod(draw, self.tiles)
            number, symmetry = int(self.listed[place_in_order]), 0
        read = self.samples.read(number)
        return None if read is None else self._cut(read, number, divmod(tile, self.tokens.columns), symmetry)

    def _cut(self, read: Read, number: int, tile: tuple[int, int], symmetry: int) -> MaskedBatch:
        side, place = self.tokens.tile, self.samples.catalogue.place(number)
        window = tuple(slice(start * side, start * side + side) for start in tile)
        pixels: dict[str, Tensor] = {}
        present: dict[str, bool] = {}
        for key, modality in self.samples.catalogue.modalities.items():
            stored = read.images.get(key)
            image = None if stored is None else standardise(stored, modality, self.shown(read, key))
            part = np.zeros((len(modality.bands), side, side)) if image is None else image[:, *window]
            if part.shape[1:] != (side, side):
                raise DataError(f"{self.shown(read, key)} is smaller than its tokens. Run terramind tokenize again.")
            pixels[modality.name] = to_image_tensor(np.ascontiguousarray(apply_symmetry(part, symmetry)), modality)
            present[modality.name] = image is not None
        tokens: dict[str, Tensor] = {}
        sides: tuple[int, ...] = ()
        for name in self.tokens.modalities:
            ids = self.tokens.read(name, place, tile, symmetry)
            present[name] = present.get(name, True) and ids is not None
            if ids is not None:
                tokens[name], sides = torch.from_numpy(ids), ids.shape
        if not sides:
            raise DataError(f"{self.shown(read, ', '.join(self.tokens.modalities))} has no tokens of any modality.")
        return {
            "pixels": pixels,
            "tokens": {name: tokens.get(name, torch.zeros(sides, dtype=torch.long)) for name in self.tokens.modalities},
            "sequences": self._sequences(read),
            "present": {name: torch.tensor(there) for name, there in present.items()},
        }

    def _sequences(self, read: Read) -> dict[str, Tensor]:
        if self.coords is None:
            return {}
        if np.isnan(read.centre).any():
            raise DataError(f"{self.shown(read, 'center')} has no position. Set coords: false.")
        return {"coords": self.coords.encode([read.centre]).ids[0]}
