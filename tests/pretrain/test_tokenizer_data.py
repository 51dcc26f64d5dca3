"""Stage 1 from files: crops, whole runs through the command line, interrupted runs."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from terramind_plugin import TokenizerDataModule, TokenizerTask
from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.export.weights import export_weights
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.pretrain.loading import ChipReader, apply_symmetry
from terramind_plugin.pretrain.tokenizer_data import draw_window
from terramind_plugin.samples.layout import ChipFolder, choose_chips, make_folders

CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
NAME = "terramind_sim_nano_tokenizer_dem"


@pytest.fixture
def data(worlds):
    def make(**changes):
        splits = worlds / "splits"
        given = {
            "modality": "DEM",
            "folder": str(worlds / "data" / "DEMHand"),
            "suffix": "_DEMHand.tif",
            "train_split": str(splits / "flood_train_data.txt"),
            "val_split": str(splits / "flood_valid_data.txt"),
            "crop": 32,
            "batch_size": 2,
        }
        return TokenizerDataModule(**given | changes)

    return make


def test_crops_are_standardised_and_stay_the_same_in_validation(data, worlds):
    module = data()
    module.setup("fit")
    image = module.val_data[0]["image"]
    assert image.shape == (1, 32, 32)
    assert image.dtype == torch.float32
    assert torch.equal(image, module.val_data[0]["image"])
    chip = ChipReader().read(module.folder, module.val_data.names[0]).astype(np.float32)
    mean, std = MODALITIES["DEM"].mean[0], MODALITIES["DEM"].std[0]
    import rasterio

    with rasterio.open(module.folder.path(module.val_data.names[0])) as file:
        expected = (file.read() - mean) / std
    assert np.abs(chip - expected).max() < 1e-3 * max(1, np.abs(expected).max())
    classes = data(modality="LULC", folder=str(worlds / "data" / "LULCHand"), suffix="*_LULCHand.tif")
    classes.setup("fit")
    assert classes.val_data[0]["image"].dtype == torch.int64
    assert classes.val_data[0]["image"].shape == (32, 32)


def test_the_eight_symmetries_are_different_and_keep_every_pixel():
    image = np.arange(12).reshape(1, 3, 4)
    made = [apply_symmetry(image, number) for number in range(8)]
    assert len({(x.shape, x.tobytes()) for x in made}) == 8
    assert all(sorted(x.ravel().tolist()) == list(range(12)) for x in made)


def test_windows_stay_inside():
    for seed in range(50):
        rows, columns = draw_window(np.random.default_rng(seed), (40, 65), 16, Path("a.tif"))
        assert 0 <= rows.start <= 24
        assert columns.stop - columns.start == 16
        assert columns.stop <= 65
    with pytest.raises(DataError, match=r"a\.tif has 40 x 65 pixels"):
        draw_window(np.random.default_rng(0), (40, 65), 48, Path("a.tif"))


def test_without_lists_every_twentieth_chip_is_for_validation(tmp_path):
    for number in range(41):
        (tmp_path / f"{number:02d}_x.tif").touch()
    folder = ChipFolder(MODALITIES["DEM"], tmp_path, "_x.tif")
    assert choose_chips([folder], None, validation=True) == ["00", "20", "40"]
    assert len(choose_chips([folder], None, validation=False)) == 38


def test_mistakes_are_named(data, tmp_path, worlds):
    with pytest.raises(ConfigError, match="both train_split and val_split"):
        data(val_split=None)
    with pytest.raises(ConfigError, match="coords is not a raster"):
        data(modality="coords")
    with pytest.raises(ConfigError, match="names S1GRD, which folders lacks"):
        make_folders({"DEM": "a"}, {"S1GRD": "b"})
    module = data(folder=str(tmp_path))
    with pytest.raises(DataError, match=r"files of .*flood_train_data\.txt are not there"):
        module.setup("fit")
    with pytest.raises(DataError, match="No file in"):
        ChipFolder(MODALITIES["DEM"], tmp_path, ".tif").names()
    module = data(batch_size=50)
    module.setup("fit")
    with pytest.raises(DataError, match="do not fill one step of 50"):
        module.train_dataloader()


class Watch(Callback):
    """Keeps what each step saw and lost; fails at a step if asked to."""

    def __init__(self, fail_at=None):
        self.seen = {}
        self.fail_at = fail_at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen[trainer.global_step] = (batch["image"].sum().item(), outputs["loss"].item())
        if trainer.global_step == self.fail_at:
            raise RuntimeError("power cut")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_run_goes_on_with_the_next_batch(data, tmp_path, workers):
    def run(folder, watch, ckpt_path=None):
        torch.manual_seed(0)
        trainer = Trainer(
            accelerator="cpu",
            max_steps=9,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            callbacks=[
                EMAWeightAveraging(decay=0.9),
                ModelCheckpoint(folder, "last", every_n_train_steps=1, enable_version_counter=False),
                watch,
            ],
        )
        task = TokenizerTask(NAME, warmup_steps=2)
        trainer.fit(task, data(num_workers=workers), ckpt_path=ckpt_path)
        return {name: value.clone() for name, value in task.state_dict().items()}

    whole, first, second = Watch(), Watch(fail_at=6), Watch()
    expected = run(tmp_path / "whole", whole)
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path / "cut", first)
    # The fifth step's checkpoint is the last before the cut: checkpoints are saved after other callbacks.
    made = run(tmp_path / "cut", second, tmp_path / "cut" / "last.ckpt")
    assert max(second.seen) == 9
    assert min(second.seen) in (6, 7)
    assert {**first.seen, **second.seen} == whole.seen
    assert all(second.seen[step] == whole.seen[step] for step in second.seen)
    assert all(torch.equal(made[name], expected[name]) for name in expected)


@pytest.mark.parametrize("modality", ["dem", "lulc"])
def test_the_configuration_trains(worlds, tmp_path, modality, monkeypatch):
    os.symlink(worlds, tmp_path / "worlds")
    (tmp_path / "nano").mkdir()
    os.rename(tmp_path / "worlds", tmp_path / "nano" / "worlds")
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.yaml"
    text = (CONFIGS / f"tokenizer_{modality}.yaml").read_text()
    assert "every_n_train_steps: 100\n" in text
    config.write_text(text.replace("every_n_train_steps: 100\n", "every_n_train_steps: 12\n"))
    words = ["--trainer.max_steps=24", "--model.warmup_steps=4", "--data.batch_size=4", "--data.crop=32"]
    words += ["--trainer.check_val_every_n_epoch=6", "--trainer.log_every_n_steps=1"]
    assert main(["fit", "--config", str(config), *words]) == 0
    (events,) = (tmp_path / "nano" / "logs").rglob("events*")
    scalars, images = read_events(events)
    losses = scalars["train/loss"]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    assert 0 < scalars["val/codebook_usage"][-1] <= 1
    assert any(name.startswith("reconstructions/") for name in images)
    ckpt = tmp_path / "nano" / "tokenizers" / modality / "last.ckpt"
    out = tmp_path / "weights.safetensors"
    assert main(["export", "--model", str(ckpt), "--out", str(out), "--dtype", "float16"]) == 0
    small, full = (
        build_image_tokenizer(f"terramind_sim_nano_tokenizer_{modality}", ckpt_path=path) for path in (out, ckpt)
    )
    for mine, theirs in zip(small.parameters(), full.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-3, atol=1e-6)


def read_events(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path)).Reload()
    tags = events.Tags()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in tags["scalars"]}, tags["images"]


def test_configurations_differ_in_their_modality_only():
    configs = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CONFIGS.glob("tokenizer_*.yaml"))}
    assert len(configs) == 6
    for name, config in configs.items():
        modality = config["data"]["init_args"]["modality"]
        assert name == f"tokenizer_{modality.lower()}"
        assert config["model"]["init_args"]["tokenizer"].endswith(modality.lower())


def test_what_cannot_be_exported(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(2)}}, tmp_path / "other.ckpt")
    torch.save({"state_dict": {"model.a": torch.full((2,), 1e6)}}, tmp_path / "large.ckpt")
    with pytest.raises(ConfigError, match="must be one of"):
        export_weights(tmp_path / "other.ckpt", tmp_path / "a.safetensors", "int8")
    with pytest.raises(ConfigError, match=r"must end in \.safetensors"):
        export_weights(tmp_path / "other.ckpt", tmp_path / "a.pt")
    with pytest.raises(ValueError, match="not from a pre-training task"):
        export_weights(tmp_path / "other.ckpt", tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="not finite as float16"):
        export_weights(tmp_path / "large.ckpt", tmp_path / "a.safetensors", "float16")
    assert not list(tmp_path.glob("*.safetensors"))
