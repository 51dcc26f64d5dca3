"""The data module of an exported model: it reads the files of one request to a server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from terramind_plugin.data.datamodule import TerraMindDataModule
from terramind_plugin.errors import DataError
from terramind_plugin.raster.paths import RASTERS


class ServedDataModule(TerraMindDataModule):
    """TerraMindDataModule as TerraTorch's vLLM plugin `terratorch_tm_segmentation` uses it.

    The plugin gives one folder as `predict_data_root`, with a folder of one file for each modality, and looks for the
    file's path in `batch['filename'][0]`. Everything else is as in TerraMindDataModule.

    Args:
        modalities: As for TerraMindDataModule.
        predict_data_root: Folder that holds a folder for each modality; or folders by modality.
        batch_size: Samples in a batch; the plugin takes one.
        kwargs: Further arguments of TerraMindDataModule.
    """

    def __init__(
        self,
        modalities: list[str | dict[str, str | int]],
        predict_data_root: str | Path | dict[str, Path] | None = None,
        batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        roots: Any = predict_data_root
        if isinstance(roots, str | Path):
            names = [name if isinstance(name, str) else next(iter(name)) for name in modalities]
            roots = {name: str(Path(roots) / name) for name in names}
        super().__init__(batch_size=batch_size, modalities=modalities, predict_data_root=roots, **kwargs)
        self.collate_of_samples = self.collate_fn
        self.collate_fn = self._collate

    def setup(self, stage: str) -> None:
        """Make the data set of a stage. For 'predict', the only file of each modality makes up one sample.

        Raises:
            DataError: A modality has no folder or no file.
        """
        roots = self.predict_root if str(getattr(stage, "value", stage)) == "predict" else None
        if isinstance(roots, Mapping):
            files = {name: _rasters(name, Path(str(root))) for name, root in roots.items()}
            if all(len(names) == 1 for names in files.values()):
                self.image_grep = _patterns({name: names[0] for name, names in files.items()})
        super().setup(stage)

    def _collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return a batch in which 'filename' lists a file of each sample: that of the first modality."""
        batch: dict[str, Any] = self.collate_of_samples(samples)
        if isinstance(samples[0].get("filename"), Mapping):
            batch["filename"] = [next(iter(sample["filename"].values())) for sample in samples]
        return batch


def _rasters(name: str, folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"{name} has no folder {folder}: a request needs a folder for each modality.")
    names = sorted(one.name for one in folder.iterdir() if one.name.lower().endswith(RASTERS))
    if not names:
        raise DataError(f"{folder} holds no raster of {name}: a request needs one file for each modality.")
    return names


def _patterns(names: Mapping[str, str]) -> dict[str, str]:
    """Return a pattern for each modality, so that the common beginning of all file names is the sample's name."""
    shared = os.path.commonprefix(list(names.values()))  # noqa: RUF071  # the characters that names share
    shared = os.path.splitext(shared)[0] if len(set(names.values())) == 1 else shared
    return {name: f"*{file[len(shared) :]}" for name, file in names.items()}
