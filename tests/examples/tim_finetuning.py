"""Fine-tuning with Thinking-in-Modalities: imagine land cover, then answer with it.

    terramind simulate --out data
    python tim_finetuning.py data --out out

As in TerraMind's tutorial terramind_v1_small_sen1floods11.ipynb, with a TiM backbone; what is new is
`import terramind_plugin`. The folder has the layout of Sen1Floods11 v1.1, which `terramind simulate` writes.
"""

import argparse
from pathlib import Path

import albumentations
import albumentations.pytorch
import lightning.pytorch as pl
import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import rasterio
import terratorch
import terratorch.datamodules
import terratorch.tasks
import torch

import terramind_plugin  # noqa: F401  the backbones are this package's from here on

parser = argparse.ArgumentParser(description="Fine-tune a TiM model on floods, test it and draw predictions.")
parser.add_argument("data", type=Path, help="folder with data/ and splits/ in the layout of Sen1Floods11")
parser.add_argument("--out", type=Path, required=True, help="folder to write to")
parser.add_argument("--backbone", default="terramind_v1_base_tim", help="default: %(default)s")
parser.add_argument("--epochs", type=int, default=5, help="default: %(default)s")
parser.add_argument("--batch_size", type=int, default=8, help="default: %(default)s")
parser.add_argument("--decoder_channels", type=int, nargs=4, default=[512, 256, 128, 64], help="default: %(default)s")
parser.add_argument("--pretrained", default="true", help="published weights, or random ones (default: true)")
options = parser.parse_args()
modalities = {"S2L1C": options.data / "data/S2L1CHand", "S1GRD": options.data / "data/S1GRDHand"}
labels = options.data / "data/LabelHand"

datamodule = terratorch.datamodules.GenericMultiModalDataModule(
    task="segmentation",
    batch_size=options.batch_size,
    num_workers=0,
    num_classes=2,
    modalities=list(modalities),
    rgb_modality="S2L1C",
    rgb_indices=[3, 2, 1],
    train_data_root=modalities,
    train_label_data_root=labels,
    val_data_root=modalities,
    val_label_data_root=labels,
    test_data_root=modalities,
    test_label_data_root=labels,
    train_split=options.data / "splits/flood_train_data.txt",
    val_split=options.data / "splits/flood_valid_data.txt",
    test_split=options.data / "splits/flood_test_data.txt",
    image_grep={"S2L1C": "*_S2Hand.tif", "S1GRD": "*_S1Hand.tif"},
    label_grep="*_LabelHand.tif",
    # Those of the pre-training data.
    means={
        "S2L1C": [
            2357.089, 2137.385, 2018.788, 2082.986, 2295.651, 2854.537, 3122.849, 3040.560, 3306.481, 1473.847,
            506.070, 2472.825, 1838.929,
        ],
        "S1GRD": [-12.599, -20.293],
    },
    stds={
        "S2L1C": [
            1624.683, 1675.806, 1557.708, 1833.702, 1823.738, 1733.977, 1732.131, 1679.732, 1727.26, 1024.687,
            442.165, 1331.411, 1160.419,
        ],
        "S1GRD": [5.195, 5.890],
    },
    train_transform=[albumentations.D4(), albumentations.pytorch.transforms.ToTensorV2()],
    no_label_replace=-1,
    no_data_replace=0,
)  # fmt: skip

pl.seed_everything(0)
checkpoint = pl.callbacks.ModelCheckpoint(
    dirpath=options.out / "checkpoints",
    mode="max",
    monitor="val/mIoU",
    filename="best-mIoU",
    save_weights_only=True,
)
trainer = pl.Trainer(
    accelerator="auto",
    devices=1,
    precision="16-mixed" if torch.cuda.is_available() else "32-true",
    max_epochs=options.epochs,
    log_every_n_steps=1,
    logger=True,
    callbacks=[checkpoint],
    default_root_dir=options.out,
)
model = terratorch.tasks.SemanticSegmentationTask(
    model_factory="EncoderDecoderFactory",
    model_args={
        "backbone": options.backbone,
        "backbone_pretrained": options.pretrained,
        "backbone_modalities": list(modalities),
        "backbone_tim_modalities": ["LULC"],
        "necks": [
            {"name": "SelectIndices", "indices": [2, 5, 8, 11]},
            {"name": "ReshapeTokensToImage", "remove_cls_token": False},
            {"name": "LearnedInterpolateToPyramidal"},
        ],
        "decoder": "UNetDecoder",
        "decoder_channels": options.decoder_channels,
        "head_dropout": 0.1,
        "num_classes": 2,
    },
    loss="dice",
    optimizer="AdamW",
    lr=2e-5,
    ignore_index=-1,
    freeze_backbone=False,
    freeze_decoder=False,
    plot_on_val=True,
    class_names=["Others", "Water"],
)

trainer.fit(model, datamodule=datamodule)
best = checkpoint.best_model_path
trainer.test(model, datamodule=datamodule, ckpt_path=best)

model = terratorch.tasks.SemanticSegmentationTask.load_from_checkpoint(
    best, model_factory=model.hparams.model_factory, model_args=model.hparams.model_args
).eval()
batch = next(iter(datamodule.test_dataloader()))
images = {name: value.to(model.device) for name, value in batch["image"].items()}
with torch.no_grad():
    predictions = model(images).output.argmax(dim=1).cpu()

test_dataset = datamodule.test_dataset
for i, prediction in enumerate(predictions[:5]):
    figure = test_dataset.plot(
        {"image": {"S2L1C": batch["image"]["S2L1C"][i]}, "mask": batch["mask"][i], "prediction": prediction}
    )
    source = Path(batch["filename"]["S2L1C"][i])
    figure.savefig(options.out / f"{source.stem}.png")
    plt.close(figure)
    with rasterio.open(source) as raster:
        profile = {**raster.profile, "count": 1, "dtype": "uint8", "nodata": None}
    with rasterio.open(options.out / f"{source.stem}_pred.tif", "w", **profile) as raster:
        raster.write(prediction.numpy().astype("uint8")[None])
