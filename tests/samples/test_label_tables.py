"""Tables of labels: what is wrong with them is said before training, with file, row and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from terramind_plugin import TerraMindDataModule
from terramind_plugin.errors import DataError
from tests.runs.made_chips import write_image, write_splits, write_table

IDS = [f"chip_{number}" for number in range(8)]
CLASSES = ["Forest", "Lake", "Town"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    for number, name in enumerate(IDS):
        write_image(root / f"{name}.tif", "S1RTC", number, 16)
    write_splits(root / "splits", IDS)
    return root


def run_of(hparams: dict[str, Any]) -> Trainer:
    """Return a trainer whose task has these hyper-parameters."""
    task = LightningModule()
    task.save_hyperparameters(hparams)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(task)
    return trainer


def read(images: Path, table: Path, task: str, hparams: dict[str, Any] | None = None, **options: Any) -> Any:
    """Return the training data set of a table."""
    if task != "scalar_regression":
        options = {"num_classes": 3, "class_names": CLASSES, **options}
    module = TerraMindDataModule(
        batch_size=2,
        num_workers=0,
        modalities=["S1RTC"],
        task=task,
        data_root={"S1RTC": str(images)},
        image_grep={"S1RTC": "*.tif"},
        label_data_root=str(table),
        train_split=str(images / "splits" / "train.txt"),
        val_split=str(images / "splits" / "val.txt"),
        **options,
    )
    module.trainer = run_of(hparams or {})
    module.setup("fit")
    return module.train_dataset


def table(folder: Path, header: list[str], rows: list[list[Any]]) -> Path:
    path = folder / "labels.csv"
    write_table(path, header, rows)
    return path


def labels(dataset: Any) -> list[Any]:
    return [dataset[index]["label"].tolist() for index in range(len(dataset))]


def test_classes_by_name_and_by_number(images: Path, tmp_path: Path) -> None:
    by_name = table(tmp_path, ["id", "class"], [[name, CLASSES[n % 3]] for n, name in enumerate(IDS)])
    assert labels(read(images, by_name, "classification")) == [0, 1, 2, 0]
    by_number = table(tmp_path, ["id", "class"], [[name, n % 3] for n, name in enumerate(IDS)])
    assert labels(read(images, by_number, "classification")) == [0, 1, 2, 0]


def test_columns_of_classes_are_found_by_name(images: Path, tmp_path: Path) -> None:
    rows = [[name, "Austria", 0, 1, n % 2] for n, name in enumerate(IDS)]
    path = table(tmp_path, ["id", "country", "Town", "Forest", "Lake"], rows)
    assert labels(read(images, path, "multilabel_classification")) == [[1, n % 2, 0] for n in range(4)]


def test_columns_with_other_names_keep_their_order(images: Path, tmp_path: Path) -> None:
    path = table(tmp_path, ["id", "a", "b", "c"], [[name, 1, n % 2, 0] for n, name in enumerate(IDS)])
    assert labels(read(images, path, "multilabel_classification")) == [[1, n % 2, 0] for n in range(4)]


WRONG: dict[str, tuple[str, list[str], Any, str]] = {
    "no column": ("classification", ["id"], lambda n: [], "no column of labels"),
    "two columns": ("classification", ["id", "a", "b"], lambda n: [0, 0], "2 columns beside the ids .a, b."),
    "unknown class": (
        "classification",
        ["id", "class"],
        lambda n: ["Forrest" if n == 1 else "Lake"],
        "row 'chip_1', column 'class': 'Forrest' is none of .*Did you mean 'Forest'",
    ),
    "class id": ("classification", ["id", "class"], lambda n: [n], "'chip_3'.*3 is not a class id, expected 0 to 2"),
    "half a class": ("classification", ["id", "class"], lambda n: [0.5], "0.5 is not a class id"),
    "no class": ("classification", ["id", "class"], lambda n: ["" if n == 2 else 1], "'chip_2'.*missing"),
    "class column": (
        "multilabel_classification",
        ["id", "Forest", "Lake", "Twon"],
        lambda n: [0, 0, 0],
        "no column 'Town'.*Did you mean 'Twon'",
    ),
    "too few": ("multilabel_classification", ["id", "a", "b"], lambda n: [0, 0], "2 columns"),
    "no 0 or 1": ("multilabel_classification", ["id", *CLASSES], lambda n: [0, 2, 0], "2 is neither 0 nor 1"),
    "one missing": ("multilabel_classification", ["id", *CLASSES], lambda n: [0, "", 1], "missing.*ignore none"),
    "text": ("scalar_regression", ["id", "value"], lambda n: ["much" if n else 1], "'much' is not a number"),
    "no value": ("scalar_regression", ["id", "value"], lambda n: ["" if n == 3 else 1], "'chip_3'.*missing"),
    "infinite": ("scalar_regression", ["id", "value"], lambda n: ["inf"], "not finite"),
    "values": ("scalar_regression", ["id", "a", "b"], lambda n: [1, 2], "2 columns.*num_outputs"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_table_is_named(case: str, images: Path, tmp_path: Path) -> None:
    task, header, values, message = WRONG[case]
    path = table(tmp_path, header, [[name, *values(n)] for n, name in enumerate(IDS)])
    with pytest.raises(DataError, match=message) as error:
        read(images, path, task, {"num_outputs": 1})
    assert str(path) in str(error.value)


@pytest.mark.parametrize("task", ["classification", "multilabel_classification", "scalar_regression"])
def test_a_file_that_is_not_listed(task: str, images: Path, tmp_path: Path) -> None:
    header, values = (["id", *CLASSES], [0, 0, 0]) if task.startswith("multi") else (["id", "value"], [0])
    path = table(tmp_path, header, [[name, *values] for name in IDS if name != "chip_2"])
    with pytest.raises(DataError, match=r"no label for 1 of 4 samples of .*train.txt, e.g. 'chip_2'"):
        read(images, path, task)


def test_a_file_that_is_listed_twice(images: Path, tmp_path: Path) -> None:
    path = table(tmp_path, ["id", "value"], [[name, 1] for name in [*IDS, "chip_1"]])
    with pytest.raises(DataError, match="several rows for 'chip_1'"):
        read(images, path, "scalar_regression")


def test_missing_numbers_are_ignored_where_the_task_does(images: Path, tmp_path: Path) -> None:
    path = table(tmp_path, ["id", "value"], [[name, "" if n == 1 else n] for n, name in enumerate(IDS)])
    dataset = read(images, path, "scalar_regression", {"ignore_index": -1, "num_outputs": 1}, no_label_replace=-1)
    assert labels(dataset) == [[0.0], [-1.0], [2.0], [3.0]]
    assert dataset[0]["label"].dtype == torch.float32
