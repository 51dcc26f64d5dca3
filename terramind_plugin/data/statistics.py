"""Mean and standard deviation of a data set, by modality and band."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from terramind_plugin.errors import DataError


def band_statistics(datamodule: Any) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return mean and standard deviation of each band of the training samples, by modality; NaN is left out.

    Samples are taken as read, without augmentation; pixels without data are not filled.

    Args:
        datamodule: A TerraMindDataModule.

    Raises:
        DataError: A band has no pixel with data.
    """
    datamodule.train_transform = None
    datamodule.keep_missing_pixels = True
    datamodule.setup("fit")
    loader = DataLoader(datamodule.train_dataset, batch_size=None, num_workers=datamodule.num_workers)
    moments: dict[str, torch.Tensor] = {}
    for sample in tqdm(loader, desc="Reading the training data"):
        images = sample["image"] if isinstance(sample["image"], dict) else {"image": sample["image"]}
        for name, image in images.items():
            values = image.double().flatten(1)
            seen = values.isfinite()
            values = values.where(seen, 0.0)
            update = torch.stack([seen.sum(1).double(), values.sum(1), values.square().sum(1)])
            moments[name] = moments.get(name, 0) + update
    means, stds = {}, {}
    for name, (count, total, squares) in moments.items():
        if not count.all():
            raise DataError(f"{name}: band {int(count.argmin()) + 1} has no pixel with data in the training samples.")
        mean = total / count
        std = (squares / count - mean.square()).clamp_min(0).sqrt()
        means[name], stds[name] = ([float(f"{value:.6g}") for value in numbers.tolist()] for numbers in (mean, std))
    return means, stds
