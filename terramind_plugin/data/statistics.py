"""Mean and standard deviation of a data set, by modality and band."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm import tqdm


def band_statistics(datamodule: Any) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return mean and standard deviation of each band of the training samples, by modality; NaN is left out.

    Samples are taken as read, without augmentation; pixels without data are not filled.

    Args:
        datamodule: A TerraMindDataModule.
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
        mean = total / count
        means[name] = [round(value, 4) for value in mean.tolist()]
        stds[name] = [round(value, 4) for value in (squares / count - mean.square()).clamp_min(0).sqrt().tolist()]
    return means, stds
