"""TerraTorch's task that writes embeddings, extended to several modalities and georeferenced files."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.warp import transform_bounds
from terratorch.tasks import EmbeddingGenerationTask
from torch import Tensor

from terramind_plugin.backbones.encoder import find_backbone
from terramind_plugin.data.terratorch_internals import CustomWriter
from terramind_plugin.data.writer import GeoTiffWriter, find_data
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.raster.georeference import check_georeference
from terramind_plugin.raster.writer import write_geotiff
from terramind_plugin.system.files import completing, write_text

KEEP = "keep"
"""Value of backbone_temporal_pooling with which each date has its own vectors."""


class EmbeddingTask(EmbeddingGenerationTask):  # type: ignore[misc]  # TerraTorch has no types
    """Writes the features of a backbone for each sample: TerraTorch's EmbeddingGenerationTask.

    Arguments and files are TerraTorch's, with these differences: batches may have several modalities, as those of
    `TerraMindDataModule`, and may lack some; files keep the CRS and transform of the first modality; images need not be
    square; GeoTIFFs are NaN where no input has data; GeoTIFFs and Parquet files of samples appear only when they are
    complete, and two samples never share a file.

    Run it with `terramind predict`; it needs no --predict_output_dir. Single scenes and chips need no configuration:
    see `terramind embed`.

    Args:
        model_args: Arguments of TerraTorch's EncoderDecoderFactory, e.g. {backbone: terramind_v1_base,
            backbone_pretrained: true, backbone_modalities: [S2L2A, S1GRD]}.
        output_dir: Folder to write to; each layer gets a folder in it.
        embed_file_key: Key of the file names in a batch.
        layers: Layers of the backbone, counted from 0, or backwards from -1; None for the last.
        output_format: 'tiff', 'parquet', 'parquet_joint' (one table for all samples, in the CRS of the first one) or
            'neuco_csv'.
        has_cls: Whether the first token is a class token; TerraMind has none.
        embedding_pooling: None for a vector for each patch; 'mean', 'max', 'min' or 'cls' for a vector for each sample.
        num_workers: Number of threads that write.
        pixel_size: Side of a pixel in metres, for data that only have a longitude and a latitude.
        freeze_backbone: Whether the backbone is frozen.
    """

    writes_itself = True
    """Tells `TerraMindDataModule` to add no writer of predictions."""

    def setup(self, stage: str) -> None:
        """Remove TerraTorch's writer, because this task returns no predictions.

        Raises:
            ConfigError: The backbone keeps modalities separate, which TerraTorch's necks cannot pool or reshape.
        """
        super().setup(stage)
        backbone = find_backbone(self.model)
        if backbone is not None and backbone.merge_method not in ("mean", "max", "concat"):
            raise ConfigError(
                f"EmbeddingTask needs one map of vectors, and backbone_merge_method {backbone.merge_method} keeps "
                "modalities apart. Set backbone_merge_method: mean, max or concat."
            )
        if stage == "predict":
            drop_writers(self.trainer)
        self._sources: dict[str, str] = {}
        self._crs: Any = None
        self._summarised = False

    @torch.no_grad()
    def predict_step(self, batch: dict[str, Any], batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Write the embeddings of a batch.

        Args:
            batch: 'image' by modality [B, bands, H, W] or [B, bands, dates, H, W], and 'filename' by modality.
            batch_idx: Not used.
            dataloader_idx: Not used.

        Raises:
            DataError: A file has a georeference that cannot be kept, or two samples have the same name.
        """
        files = batch.get(self.embed_file_key)
        if not isinstance(files, Mapping):
            super().predict_step(batch)
            return
        x = batch["image"]
        first = next(iter(files))
        sources = [[str(paths[number]) for paths in files.values()] for number in range(len(files[first]))]
        image: Tensor = x[first] if first in x else next(iter(x.values()))
        rest = {"modality_mask": batch["modality_mask"]} if "modality_mask" in batch else {}
        self._set_height(image.shape[-2])
        embeddings = self(x, **rest)
        embeddings = embeddings if isinstance(embeddings, list) else [embeddings]
        places = [_Place(paths, (image.shape[-2], image.shape[-1])) for paths in sources]
        self._summarise(embeddings)
        for layer, embedding in enumerate(embeddings):
            folder = self.output_path / f"layer_{layer:02d}"
            self.write_batch(embedding.float(), self._name(places, embedding), self._describe(places), folder)

    def _set_height(self, height: int) -> None:
        """Tell TerraTorch's neck the number of rows of patches in an image; it assumes square images."""
        backbone = find_backbone(self.model)
        if backbone is None:
            return
        for module in self.model.modules():
            if type(module).__name__ == "ReshapeTokensToImage":
                module.h = -(-height // backbone.patch_size)

    def _name(self, places: Sequence[_Place], values: Tensor) -> list[Any]:
        """Return the names of files for samples, or for each date of each sample."""
        for place in places:
            before = self._sources.setdefault(place.name, place.path)
            if before != place.path:
                raise DataError(
                    f"{before} and {place.path} would both be written to {place.name}_embedding. Give one of them "
                    "another name."
                )
        several = self.model_args.get("backbone_use_temporal") and (
            self.model_args.get("backbone_temporal_pooling", "mean") == KEEP
        )
        if not several:
            return [place.name for place in places]
        return [[f"{place.name}_{date}" for date in range(values.shape[1])] for place in places]

    def _describe(self, places: Sequence[_Place]) -> dict[str, list[Any]]:
        """Return the metadata of samples for TerraTorch's writers."""
        if self.output_format == "parquet_joint":
            self._crs = self._crs or places[0].crs
            here = [place.bounds if place.crs == self._crs else place.bounds_in(self._crs) for place in places]
            crs = [self._crs.to_wkt() if self._crs else None] * len(places)
            return {"crs": crs, "bounds": here, "source": [place.path for place in places]}
        return {"place": list(places)}

    def iter_samples(self, embedding: Any, file_ids: Any, metadata: dict[str, Any], *, is_temporal: bool) -> Any:
        """Yield vectors, name and metadata of each file; TerraTorch's method would split lists by their length."""
        if "place" not in metadata:
            yield from super().iter_samples(embedding, file_ids, metadata, is_temporal=is_temporal)
            return
        for values, ids, place in zip(embedding, file_ids, metadata["place"], strict=True):
            pairs = zip(values, ids, strict=True) if is_temporal else [(values, ids)]
            for one, name in pairs:
                yield one, name, {"place": place}

    def write_tiff(
        self,
        arr: NDArray[Any],
        filename: str,
        metadata: dict[str, Any],
        dir_path: Path,
        suffix: str = "_embedding",
    ) -> None:
        """Write the vectors of a sample as a GeoTIFF, with a band for each dimension.

        Args:
            arr: Vectors [dimensions], [rows, columns] or [dimensions, rows, columns].
            filename: Name of the sample.
            metadata: Metadata of the sample.
            dir_path: Folder to write to.
            suffix: End of the file's name.

        Raises:
            DataError: The file cannot be written.
        """
        place = metadata.get("place")
        if place is None:
            super().write_tiff(arr, filename, metadata, dir_path, suffix)
            return
        arr = arr.reshape(-1, 1, 1) if arr.ndim == 1 else arr[None] if arr.ndim == 2 else arr
        arr = np.where(place.valid(arr.shape[1:]), arr, np.nan).astype(np.float32)
        path = dir_path / f"{filename}{suffix}.tif"
        transform = place.transform_of(arr.shape[1:])
        write_geotiff(path, arr, crs=place.crs, transform=transform, nodata=np.nan, tags={"source": place.path})

    def write_parquet(
        self,
        arr: NDArray[Any],
        filename: str,
        metadata: dict[str, Any],
        dir_path: Path,
        suffix: str = "_embedding",
    ) -> None:
        """Write the vectors of a sample as GeoParquet; arguments and errors as in `write_tiff`."""
        place = metadata.get("place")
        if place is not None:
            metadata = {"source": place.path}
            if place.crs:
                metadata |= {"crs": place.crs.to_wkt(), "bounds": list(place.bounds)}
        write = super().write_parquet
        _write_whole(dir_path / f"{filename}{suffix}.parquet", lambda at: write(arr, filename, metadata, at, suffix))

    def _summarise(self, embeddings: Sequence[Tensor]) -> None:
        """Write TerraTorch's summary of the run, once."""
        if self._summarised or not self.trainer.is_global_zero:
            return
        depth = getattr(find_backbone(self.model), "variant", None)
        shapes = [list(one.shape[1:]) for one in embeddings]
        summary = {
            "created_utc": datetime.now(UTC).isoformat(),
            "output_dir": str(self.output_path.absolute()),
            "output_format": self.output_format,
            "backbone": self.model_args["backbone"],
            "backbone_total_params_million": sum(one.numel() for one in self.model.parameters()) / 1e6,
            "has_cls": self.has_cls,
            "embedding_pooling": self.embedding_pooling,
            "model_layer_count": getattr(depth, "depth", None),
            "n_layers_saved": len(self.embedding_indices),
            "layers": [
                {"output_folder_name": f"layer_{number:02d}", "requested_index": index, "output_shape": shape}
                for number, (index, shape) in enumerate(zip(self.embedding_indices, shapes, strict=False))
            ],
        }
        write_text(self.output_path / "configuration_summary.json", json.dumps(summary, indent=2) + "\n")
        self._summarised = True


class _Place:
    """Position of a sample on the ground, and the mask of its data.

    Args:
        paths: Files of the sample; the first one gives the position.
        shape: Height and width of the model's input in pixels.
    """

    def __init__(self, paths: Sequence[str], shape: tuple[int, int]) -> None:
        self.path = paths[0]
        self.name = Path(self.path).stem
        self.paths = list(paths)
        self.shape = shape
        with rasterio.open(self.path) as raster:
            check_georeference(raster)
            self.crs, self.transform, found = raster.crs, raster.transform, raster.shape
            self.bounds = tuple(raster.bounds)
        if found != shape:
            raise DataError(
                f"{self.path} has {list(found)} pixels, but the model gets {list(shape)}: test_transform changes the "
                "size, so vectors would get wrong positions. Remove it: the model accepts any size."
            )

    def bounds_in(self, crs: Any) -> tuple[float, ...]:
        """Return left, bottom, right and top in another CRS."""
        if not crs or not self.crs:
            raise DataError(f"{self.path} has CRS {self.crs or 'none'}, another sample {crs or 'none'}. Use one CRS.")
        return tuple(transform_bounds(self.crs, crs, *self.bounds))

    def _cell(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the height and width of a vector's footprint in pixels, for a map of the given height and width."""
        return -(-self.shape[0] // shape[0]), -(-self.shape[1] // shape[1])

    def transform_of(self, shape: Sequence[int]) -> Affine:
        """Return the transform of a map of vectors of the given height and width."""
        tall, wide = self._cell(shape)
        a, b, c, d, e, f = self.transform[:6]
        return Affine(a * wide, b * tall, c, d * wide, e * tall, f)

    def valid(self, shape: Sequence[int]) -> NDArray[np.bool_]:
        """Return the mask of vectors that have data in some pixel of some modality, for a map of the given shape."""
        known, _ = find_data([path for path in self.paths if Path(path).is_file()], self.shape)
        tall, wide = self._cell(shape)
        padding = [(0, shape[0] * tall - known.shape[0]), (0, shape[1] * wide - known.shape[1])]
        cells = np.pad(known, padding).reshape(shape[0], tall, shape[1], wide)
        return np.asarray(cells.any(axis=(1, 3)))


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call TerraTorch to write a file into a temporary folder, and move the file to its place when it is complete."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder, completing(path) as partial:
        write(Path(folder))
        (Path(folder) / path.name).replace(partial)


def drop_writers(trainer: Any) -> None:
    """Remove writers of predictions from the callbacks of a trainer."""
    trainer.callbacks = [one for one in trainer.callbacks if not isinstance(one, CustomWriter | GeoTiffWriter)]
