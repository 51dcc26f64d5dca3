"""Changes to a segmentation of simulated chips that make other tasks of it."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.transform import from_origin

VECTOR = {
    "model_args.necks": [{"name": "SelectIndices", "indices": [11]}, {"name": "ReshapeTokensToImage"}],
    "model_args.decoder": "IdentityDecoder",
    "model_args.decoder_channels": ...,
    "data.label_grep": ...,
    "data.class_names": ...,
    "model.class_names": ...,
}
"""Changes to a task with one answer for each image."""


def pixelwise(dataset: Any, folder: Path) -> dict[str, Any]:
    return {
        "data.task": "regression",
        "data.num_classes": ...,
        "data.class_names": ...,
        "data.label_data_root": str(dataset.root / "data" / "NDVIHand"),
        "data.label_grep": "*_NDVIHand.tif",
        "model.class_path": "terratorch.tasks.PixelwiseRegressionTask",
        "model.loss": "rmse",
        "model.class_names": ...,
        "model_args.num_classes": ...,
    }


def table(dataset: Any, folder: Path, columns: dict[str, Any]) -> str:
    path = folder / "labels.csv"
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["id", *columns])
        rows.writerows(
            [name, *(make(number) for make in columns.values())] for number, name in enumerate(dataset.chip_ids)
        )
    return str(path)


def scalar(dataset: Any, folder: Path) -> dict[str, Any]:
    return {
        **VECTOR,
        "data.task": "scalar_regression",
        "data.num_classes": ...,
        "data.label_data_root": table(dataset, folder, {"value": lambda number: number / 12}),
        "model.class_path": "terratorch.tasks.ScalarRegressionTask",
        "model.loss": "mse",
        "model.ignore_index": ...,
        "model_args.num_classes": ...,
        "model_args.num_outputs": 1,
    }


def labels(dataset: Any, folder: Path) -> dict[str, Any]:
    columns = {"water": lambda n: n % 2, "forest": lambda n: n % 3 == 0, "town": lambda n: 1}
    return {
        **VECTOR,
        "data.task": "multilabel_classification",
        "data.num_classes": 3,
        "data.label_data_root": table(dataset, folder, {name: lambda n, f=f: int(f(n)) for name, f in columns.items()}),
        "model.class_path": "terratorch.tasks.MultiLabelClassificationTask",
        "model.loss": "bce",
        "model.ignore_index": ...,
        "model_args.num_classes": 3,
    }


def one_label(dataset: Any, folder: Path) -> dict[str, Any]:
    return {
        **VECTOR,
        "data.task": "classification",
        "data.num_classes": 3,
        "data.label_data_root": table(dataset, folder, {"class": lambda number: number % 3}),
        "model.class_path": "terratorch.tasks.ClassificationTask",
        "model_args.num_classes": 3,
    }


TASKS = {"pixel-wise regression": pixelwise, "one number": scalar, "several labels": labels, "one label": one_label}


def series(folder: Path, dates: dict[str, int], size: int = 32) -> dict[str, Any]:
    """Write chips of several dates and return changes to a configuration that reads them."""
    rng = np.random.default_rng(0)
    bands = {"S2L2A": ["BLUE", "GREEN", "RED"], "DEM": ["DEM"]}
    names = [f"chip_{number}" for number in range(4)]
    for number, name in enumerate(names):
        contents = {
            "S2L2A": rng.integers(500, 3000, (3 * dates["S2L2A"], size, size)).astype(np.int16),
            "DEM": rng.normal(300, 30, (dates["DEM"], size, size)).astype(np.float32),
            "label": rng.integers(0, 2, (1, size, size)).astype(np.int16),
        }
        for kind, values in contents.items():
            (folder / kind).mkdir(exist_ok=True)
            profile = {"driver": "GTiff", "height": size, "width": size, "crs": "EPSG:32633", "dtype": values.dtype}
            place = from_origin(500000 + 10000 * number, 5e6, 10, 10)
            with rasterio.open(
                folder / kind / f"{name}.tif", "w", count=len(values), transform=place, **profile
            ) as raster:
                raster.write(values)
    for split, ids in {"train": names[:2], "val": names[2:3], "test": names[3:]}.items():
        (folder / f"{split}.txt").write_text("\n".join(ids))
    return {
        "data.modalities": list(bands),
        "data.data_root": {name: str(folder / name) for name in bands},
        "data.image_grep": dict.fromkeys(bands, "*.tif"),
        "data.label_data_root": str(folder / "label"),
        "data.label_grep": "*.tif",
        "data.dataset_bands": bands,
        "data.expand_temporal_dimension": True,
        "data.predict_split": ...,
        **{f"data.{split}_split": str(folder / f"{split}.txt") for split in ("train", "val", "test")},
        "model_args.backbone_modalities": list(bands),
        "model_args.backbone_bands": {"S2L2A": bands["S2L2A"]},
        "model_args.backbone_use_temporal": True,
        "model_args.backbone_temporal_pooling": "mean",
        "model_args.backbone_temporal_n_timestamps": 2,
        "model_args.backbone_temporal_concat": None,
        "model_args.backbone_temporal_features_permute_op": None,
        "model_args.backbone_temporal_subset_lengths": [1, 1],
    }


def detection(dataset: Any, folder: Path) -> dict[str, Any]:
    """Write two boxes for each chip and return changes to a configuration that finds such boxes."""
    for name in dataset.chip_ids:
        boxes = {"boxes": [[4, 8, 30, 40], [20, 36, 60, 60]], "labels": [1, 2]}
        (folder / f"{name}_S2Hand.json").write_text(json.dumps(boxes))
    images = str(dataset.root / "data" / "S2L1CHand")
    bands = list(range(13))
    return {
        "data": {
            "class_path": "terratorch.datamodules.GenericNonGeoObjectDetectionDataModule",
            "init_args": {
                "batch_size": 2,
                "num_workers": 0,
                "num_classes": 3,
                "class_names": ["background", "pond", "field"],
                "img_grep": "*.tif",
                **{f"{stage}_data_root": images for stage in ("train", "val", "test", "predict")},
                **{f"{stage}_label_data_root": str(folder) for stage in ("train", "val", "test")},
                "dataset_bands": bands,
                "output_bands": bands,
                "rgb_indices": [3, 2, 1],
                "no_data_replace": 0,
                "constant_scale": 1e-4,
                **{f"{stage}_transform": [{"class_path": "ToTensorV2"}] for stage in ("train", "val", "test")},
            },
        },
        "model": {
            "class_path": "terratorch.tasks.ObjectDetectionTask",
            "init_args": {
                "model_factory": "ObjectDetectionModelFactory",
                "model_args": {
                    "framework": "faster-rcnn",
                    "backbone": "terramind_v1_tiny",
                    "backbone_pretrained": False,
                    "backbone_modalities": ["S2L1C"],
                    "num_classes": 3,
                    "in_channels": len(bands),
                    "framework_min_size": 64,
                    "framework_max_size": 64,
                    "framework_box_detections_per_img": 4,
                    "necks": [
                        {"name": "SelectIndices", "indices": [2, 5, 8, 11]},
                        {"name": "ReshapeTokensToImage", "remove_cls_token": False},
                        {"name": "LearnedInterpolateToPyramidal"},
                        {"name": "FeaturePyramidNetworkNeck"},
                    ],
                },
                "score_threshold": 0.0,
            },
        },
    }
