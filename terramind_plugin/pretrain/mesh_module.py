"""TerraMesh as a data module for tokenizers, masked modelling and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from typing import Any

from torch.utils.data import DataLoader

from terramind_plugin.builders import build_coords_tokenizer
from terramind_plugin.data.guard import guard
from terramind_plugin.errors import ConfigError, DataError, one_line
from terramind_plugin.model.modalities import resolve
from terramind_plugin.model.variants import find_variant
from terramind_plugin.pretrain.loading import ResumableDataModule
from terramind_plugin.pretrain.mesh_check import describe_shards
from terramind_plugin.pretrain.mesh_samples import MeshCrops, MeshDataset, MeshImages, MeshTiles, MeshTokens
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.shards.catalogue import OnError
from terramind_plugin.shards.samples import BUFFER, TerraMeshSamples


class TerraMeshDataModule(ResumableDataModule):
    """Batches of TerraMesh, or of another data set of its layout, read from tar shards.

    * For `TokenizerTask` name one modality: {'image': standardised crops under random D4 symmetries}.
    * For `MaskedModellingTask` name variant, tokens and store: batches of type `MaskedBatch`. `terramind tokenize
      --data terramesh:ROOT` makes the store. A modality that a sample lacks is neither read nor predicted.
    * For evaluation name several modalities and no tokens: {'image' by modality, 'modality_mask', 'filename',
      'center'}; images are standardised, missing ones NaN.

    Published values are standardised without removing offsets: some Sentinel-2 images have the offset and some do not,
    even within a sample. A resumed run continues with the batch that would have come next; every process gets
    `batch_size` samples.

    Args:
        root: Folder that holds train/ and val/, URL of such a folder, or hub:ORG/NAME[@REVISION].
        modalities: Modalities that the model gets as pixels.
        variant: Name of the model for masked modelling, e.g. 'terramind_v1_base'.
        tokens: Modalities that the model gets as token ids.
        store: Folder that `terramind tokenize` wrote.
        coords: Whether the position of a sample's centre is in the batch of masked modelling.
        train_split: Folder of the training split.
        val_split: Folder of the validation split; with None, every twentieth sample of train_split is for validation.
        crop: Side in pixels of a random crop for tokenizers (default 256), or of the middle for evaluation (default:
            the whole image). In masked modelling, tiles have the size of an image of the model.
        batch_size: Samples per step and process.
        num_workers: Number of processes that read.
        seed: Seed of order, crops and symmetries.
        buffer: Number of places by which shuffling may move a sample from its place in the shard.
        weights: Share of the samples by subset in training, e.g. {majortom: 0.8, ssl4eos12: 0.2}.
        max_cloud_cover: Maximum cloud_cover in the metadata table, in the unit of the table.
        area: West, south, east and north in degrees, compared with the metadata table.
        ranges: Minimum and maximum value by further columns of the metadata table.
        on_error: 'raise' to stop at a damaged sample, 'skip' to leave damaged samples out and count them.
        revision: Branch, tag or commit on the hub.
        cache_dir: Folder for indices of shards; by default only those of remote shards are kept, in the user's cache
            folder.

    Raises:
        ConfigError: An argument is wrong or missing.
    """

    def __init__(
        self,
        root: str,
        modalities: Sequence[str],
        variant: str | None = None,
        tokens: Sequence[str] = (),
        store: str | None = None,
        coords: bool = False,
        train_split: str = "train",
        val_split: str | None = "val",
        crop: int | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        buffer: int = BUFFER,
        weights: Mapping[str, float] | None = None,
        max_cloud_cover: float | None = None,
        area: Sequence[float] | None = None,
        ranges: Mapping[str, Sequence[float]] | None = None,
        on_error: OnError = "raise",
        revision: str | None = None,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        given = [bool(tokens), store is not None, variant is not None]
        if any(given) != all(given):
            raise ConfigError("Masked modelling needs variant, tokens and store. Give all three of them, or none.")
        if coords and not tokens:
            raise ConfigError("coords: true is for masked modelling, with variant, tokens and store.")
        if crop is not None and (tokens or crop < 1):
            raise ConfigError(f"crop is for tokenizers and evaluation, at least 1, got {crop}. Leave it out.")
        self.variant = find_variant(variant) if variant is not None else None
        self.tokens = [resolve(name) for name in tokens]
        self.store, self.has_coords, self.crop = store, coords, crop
        self.train_split, self.val_split = train_split, val_split
        self.weights = weights
        self._options: dict[str, Any] = {
            "root": root, "modalities": list(modalities), "seed": seed, "buffer": buffer, "area": area,
            "max_cloud_cover": max_cloud_cover, "ranges": ranges, "on_error": on_error, "revision": revision,
            "cache_dir": cache_dir,
        }  # fmt: skip
        self.revision: str | None = None
        """Commit on the hub, once it is set up."""
        self._shards: dict[str, str] = {}

    def open_split(self, split: str) -> TerraMeshSamples:
        """Return the samples of 'train' or 'val'.

        Raises:
            ConfigError: An argument is wrong.
            DataError: The data set is missing or damaged.
        """
        train = split == "train"
        options = {**self._options, "shuffle": train, "weights": self.weights if train else None}
        folder = self.train_split if train or self.val_split is None else self.val_split
        samples = TerraMeshSamples(split=folder, **options)
        return samples if self.val_split is not None else samples.held_out(validation=not train)

    def setup(self, stage: str) -> None:
        """Open the shards of a stage.

        Args:
            stage: 'fit', 'validate', 'test' or 'predict'.
        """
        guard(self.trainer)
        if stage == "fit":
            self.train_data = self._make("train")
        self.val_data = self._make("val")

    def _make(self, split: str) -> MeshDataset:
        samples, validation = self.open_split(split), split == "val"
        self.revision = samples.revision
        self._shards[split] = samples.catalogue.fingerprint()
        if self.variant is not None:
            coords = build_coords_tokenizer(family=self.variant.family) if self.has_coords else None
            return MeshTiles(samples, validation, self.open_tokens(samples), coords)
        if len(samples.catalogue.modalities) == 1:
            return MeshCrops(samples, validation, self.crop or 256)
        return MeshImages(samples, validation, self.crop)

    def open_tokens(self, samples: TerraMeshSamples) -> MeshTokens:
        """Return the stored tokens of a split.

        Raises:
            DataError: Tokens are missing, or were made for another model.
        """
        assert self.variant is not None
        assert self.store is not None
        return MeshTokens(self.store, samples.catalogue.split, self.tokens, samples, self.variant.family)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the batches of validation: TerraMesh has no test split."""
        return self._loader(self.val_data)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return the batches of validation."""
        return self._loader(self.val_data)

    def state_dict(self) -> dict[str, Any]:
        """Return a hash of the shards and the revision, which checkpoints keep."""
        return {"shards": copy(self._shards), "revision": self.revision}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Check that a resumed run reads the same data.

        Args:
            state_dict: Result of the method `state_dict`.

        Raises:
            ConfigError: Shards, numbers of samples or the revision differ.
        """
        stored = state_dict.get("shards", {}).get("train")
        if stored is not None and self._shards.get("train", stored) != stored:
            raise ConfigError(
                f"{self._options['root']} is not what the checkpoint was trained on: other shards or numbers of "
                f"samples, or another revision ({state_dict.get('revision')} in the checkpoint, {self.revision} now). "
                "Give the same data, or start a new run with the weights alone: ckpt_path of the task."
            )

    def check_shards(self, samples: int = 64) -> Iterator[Finding]:
        """Yield findings about shards and values, for `terramind check`.

        Args:
            samples: Maximum number of samples to read.
        """
        opened: dict[str, TerraMeshSamples] = {}
        for split in ("train", "val"):
            try:
                opened[split] = self.open_split(split)
                yield from describe_shards(opened[split], split, max(samples // 2, 1))
            except (ConfigError, DataError) as error:
                yield Finding(f"shards: {split}", "error", one_line(error))
        if self.variant is None or len(opened) < 2:
            return
        for split, found in opened.items():
            try:
                tokens = self.open_tokens(found)
                tokens.check()
                tiles = len(found.order(0)) * tokens.rows * tokens.columns
                yield Finding(f"tokens: {split}", "ok", f"{', '.join(tokens.modalities)}: {tiles} tiles.")
            except (ConfigError, DataError) as error:
                yield Finding(f"tokens: {split}", "error", one_line(error))
