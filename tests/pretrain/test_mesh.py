"""TerraMesh's shards in both stages of pre-training: stored tokens, losses that fall, runs that go on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from terramind_plugin import MaskedModellingTask, TerraMeshDataModule, TokenizerTask
from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.pretrain.loading import Draw
from terramind_plugin.pretrain.masking import MaskPlan, draw_masks
from terramind_plugin.pretrain.mesh_tokens import standardise
from terramind_plugin.pretrain.token_store import TokenFile
from terramind_plugin.samples.checks.findings import Finding
from terramind_plugin.shards.writer import write_shard
from tests.conftest import one_thread
from tests.shards.packing import key_of, member, pack, pack_real, values_of

NANO = "terramind_sim_nano"
LAYOUT = {"majortom_shard_000001": 6, "ssl4eos12_shard_000001": 4}
FOLDERS = ["S2L2A", "S2L1C", "S1GRD", "S1RTC", "DEM", "LULC"]
CHIPS = Path(__file__).parents[3] / "shared" / "data" / "terramesh"


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """Return root and store of a made-up data set of 72 pixels: one tile of the small model."""
    root = tmp_path_factory.mktemp("mesh")
    for split in ("train", "val"):
        pack(root, split, LAYOUT, FOLDERS, side=72)
    words = ["--data", f"terramesh:{root}", "--out", str(root / "tokens"), "--model", NANO, "--symmetries", "1"]
    assert main(["tokenize", *words]) == 0
    return root, root / "tokens", words


def module(mesh, **changes):
    root, store, _ = mesh
    given = {"modalities": ["S2L2A", "S1GRD", "S1RTC"], "variant": NANO, "tokens": ["S1GRD", "S1RTC", "LULC"]}
    return TerraMeshDataModule(str(root), **{**given, "store": str(store), "batch_size": 2, **changes})


def test_tokens_are_made_once_for_each_shard(mesh, capsys):
    _, store, words = mesh
    files = sorted(path.relative_to(store).as_posix() for path in store.rglob("*.safetensors"))
    assert "train/S1RTC/majortom_shard_000001.safetensors" in files
    assert "val/S1GRD/ssl4eos12_shard_000001.safetensors" in files
    assert len(files) == 2 * 8  # S2L2A, DEM, LULC and one radar for each of two shards; no tokens of S2L1C
    changed = {path: path.stat().st_mtime_ns for path in store.rglob("*.safetensors")}
    gone = store / "val/DEM/majortom_shard_000001.safetensors"
    gone.unlink()
    capsys.readouterr()
    assert main(["tokenize", *words]) == 0  # as after a run that was stopped
    assert "1 file written" in capsys.readouterr().out
    assert gone.is_file()
    assert all(path.stat().st_mtime_ns == time for path, time in changed.items() if path != gone)
    assert main(["tokenize", *words[:-1], "8"]) == 2
    assert "--replace" in capsys.readouterr().err


def test_tokens_equal_those_of_the_tokenizer(mesh):
    from terramind_plugin.builders import build_image_tokenizer

    _, store, _ = mesh
    file = TokenFile(store, MODALITIES["S1RTC"], "val/S1RTC/majortom_shard_000001")
    values = values_of(2, "S1RTC", 72).astype("f4")
    image = standardise(values, MODALITIES["S1RTC"], "x")
    assert (image[:, :2, :3] == 0).all()  # NaN becomes the mean
    tokenizer = build_image_tokenizer(f"{NANO}_tokenizer_s1rtc", pretrained=True, decoder=False)
    with torch.inference_mode():
        wanted = tokenizer.tokenize(torch.from_numpy(image[None, :, :64, :64]).contiguous())[0]
    np.testing.assert_array_equal(file.read(key_of("majortom_shard_000001", "val", 2), 0, 0), wanted)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "S2L2A=x"], "must be the only --data"),
        (["--modalities", "S2L1C"], "S2L1C has no tokenizer. Tokenizers are there for"),
        (["--splits", "test"], "holds no folder of a modality"),
        (["--tokenizer_ckpt_path", "NDVI=x.ckpt"], "NDVI, which is not tokenised here"),
    ],
)
def test_wrong_words(words, message, mesh, capsys):
    assert main(["tokenize", *mesh[2], *words]) == 2
    assert message in capsys.readouterr().err


def test_options_of_a_mesh_need_one(tmp_path, capsys):
    words = ["--data", f"DEM={tmp_path}", "--out", str(tmp_path), "--model", NANO]
    assert main(["tokenize", *words, "--splits", "val"]) == 2
    assert "are for --data terramesh:ROOT" in capsys.readouterr().err


def test_masked_batches(mesh):
    data = module(mesh, coords=True)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch["pixels"]["S2L2A"].shape == (2, 12, 64, 64)
    assert batch["tokens"]["LULC"].shape == (2, 8, 8)
    assert batch["sequences"]["coords"].shape[0] == 2
    assert batch["present"]["S1RTC"].all()
    assert not batch["present"]["S1GRD"].any()
    last = [*data.val_dataloader()][-1]
    assert last["present"]["S1GRD"].all()
    assert not last["present"]["S1RTC"].any()
    wanted = (values_of(0, "S2L2A", 72)[:, :64, :64] - np.array(MODALITIES["S2L2A"].mean)[:, None, None]) / np.array(
        MODALITIES["S2L2A"].std
    )[:, None, None]
    np.testing.assert_allclose(batch["pixels"]["S2L2A"][0].numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_missing_modalities_are_neither_read_nor_predicted():
    plan = MaskPlan(("S1GRD", "S1RTC"), ("S1GRD", "S1RTC", "LULC"), {}, (16, 32), 32)
    present = {"S1GRD": torch.arange(40) % 2 == 0, "S1RTC": torch.arange(40) % 2 == 1}
    masks = draw_masks(plan, 40, 64, torch.Generator().manual_seed(0), present)
    for kind in (masks.inputs, masks.targets):
        for entry, mask in kind.items():
            name = entry.partition(".")[2]
            assert not mask[~present.get(name, torch.ones(40, dtype=torch.bool))].any()
    assert (sum(mask.sum(dim=1) for mask in masks.inputs.values()) >= 16).all()
    plain = draw_masks(plan, 40, 64, torch.Generator().manual_seed(0))
    whole = draw_masks(plan, 40, 64, torch.Generator().manual_seed(0), {})
    assert all(torch.equal(plain.inputs[name], whole.inputs[name]) for name in plain.inputs)


class Diary(Callback):
    """Notes the loss of each batch; writes a checkpoint after one of them."""

    def __init__(self, path=None, after=None):
        self.path, self.after, self.losses = path, after, []

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        if len(self.losses) == self.after:
            trainer.save_checkpoint(self.path)


def fit(task, data, folder, *callbacks, ckpt_path=None, **options):
    torch.manual_seed(0)
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "logger": False}
    silent |= {"limit_val_batches": 0, "accelerator": "cpu", "enable_checkpointing": False}
    trainer = Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**silent, **options})
    trainer.fit(task, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def masked_task(**changes):
    given = {"pixels": ["S2L2A", "S1GRD", "S1RTC"], "tokens": ["S1GRD", "S1RTC", "LULC"], "input_tokens": [16, 32]}
    return MaskedModellingTask(NANO, **given, target_tokens=32, warmup_steps=2, **{"lr": 2e-3, **changes})


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on_with_the_same_batch(workers, mesh, tmp_path):
    """It stops in the middle of a shard, in the second epoch."""
    whole, rest = Diary(tmp_path / "7.ckpt", 7), Diary()
    fit(masked_task(), module(mesh, num_workers=workers), tmp_path, whole, max_steps=9)
    fit(masked_task(), module(mesh), tmp_path, rest, ckpt_path=tmp_path / "7.ckpt", max_steps=9)
    assert len(whole.losses) == 9
    assert rest.losses == whole.losses[7:]


def test_other_shards_are_refused_when_going_on(mesh, tmp_path):
    fit(masked_task(), module(mesh), tmp_path, Diary(tmp_path / "1.ckpt", 1), max_steps=3)
    other = module(mesh, train_split="val", val_split=None)
    with pytest.raises(ConfigError, match="not what the checkpoint was trained on"):
        fit(masked_task(), other, tmp_path, ckpt_path=tmp_path / "1.ckpt", max_steps=3)
    with pytest.raises(ConfigError, match="start a new run"):
        other.load_state_dict({"shards": {"train": "other"}, "revision": None})


def test_tokenizer_crops(mesh):
    root, _, _ = mesh
    data = TerraMeshDataModule(str(root), ["S1GRD"], crop=32, batch_size=2, seed=3)
    data.setup("fit")
    assert len(data.train_data) == 4  # Major TOM has none
    one, two = data.train_data[Draw(1, (0, 0, 0))], data.train_data[Draw(1, (0, 0, 1))]
    assert one["image"].shape == (2, 32, 32)
    assert not torch.equal(one["image"], two["image"])
    assert torch.equal(data.val_data[0]["image"], data.val_data[0]["image"])
    assert next(iter(data.train_dataloader()))["image"].isfinite().all()
    classes = TerraMeshDataModule(str(root), ["LULC"], crop=32)
    classes.setup("validate")
    assert classes.val_data[0]["image"].dtype == torch.int64


def test_evaluation_batches(mesh):
    root, _, _ = mesh
    data = TerraMeshDataModule(str(root), ["S2L2A", "S1GRD"], batch_size=10, crop=64)
    data.setup("test")
    (batch,) = data.test_dataloader()
    assert batch["image"]["S2L2A"].shape == (10, 12, 64, 64)
    assert batch["modality_mask"]["S1GRD"].tolist() == [False] * 6 + [True] * 4
    assert batch["image"]["S1GRD"][:6].isnan().all()
    assert batch["image"]["S1GRD"][6:].isfinite().all()
    assert batch["filename"][0] == key_of("majortom_shard_000001", "val", 0)
    assert batch["center"].dtype == torch.float64


def test_a_split_of_ones_own(mesh):
    root, _, _ = mesh
    data = TerraMeshDataModule(str(root), ["DEM"], train_split="val", val_split=None, crop=16, batch_size=2)
    data.setup("fit")
    assert (len(data.train_data), len(data.val_data)) == (9, 1)
    assert not set(data.train_data.draw_order(0)) & set(data.val_data.listed)


def test_damage_is_left_out_of_batches(mesh, tmp_path):
    values = np.full((2, 72, 72), np.nan, "f2")
    with write_shard(tmp_path, "val", "ssl4eos12_shard_000001", ["S1GRD"]) as writer:
        for number in range(4):
            content = member(number, "S1GRD", values if number == 1 else None, side=72)
            writer.add(f"k{number}", {"S1GRD": b"no zip" if number == 2 else content})
    data = TerraMeshDataModule(str(tmp_path), ["S1GRD"], crop=32, batch_size=4, on_error="skip")
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert len(batch["image"]) == 2
    assert data.val_data.samples.skipped == {"damaged": 2}
    data = TerraMeshDataModule(str(tmp_path), ["S1GRD"], crop=32, batch_size=4)
    data.setup("validate")
    with pytest.raises(DataError, match=r"ssl4eos12_shard_000001.tar: k2 is not a readable Zarr group"):
        next(iter(data.val_dataloader()))
    data = TerraMeshDataModule(str(tmp_path), ["S1GRD"], crop=100)
    data.setup("validate")
    with pytest.raises(DataError, match="crops of 100 x 100 do not fit"):
        next(iter(data.val_dataloader()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": None}, "Give all three"),
        ({"variant": "terramind_sim_nan"}, f"Did you mean '{NANO}'"),
        ({"crop": 32}, "crop is for tokenizers"),
        ({"tokens": [], "store": None, "variant": None, "coords": True}, "coords: true is for masked modelling"),
    ],
)
def test_wrong_arguments(changes, message, mesh):
    with pytest.raises(ConfigError, match=message):
        module(mesh, **changes)


def test_tokens_that_do_not_belong(mesh, tmp_path):
    with pytest.raises(DataError, match=r"train/S1GRD/.* is not there. Make it: terramind tokenize --data terramesh:"):
        module(mesh, store=str(tmp_path)).setup("fit")
    with pytest.raises(ConfigError, match="S2L1C has no tokenizer"):
        module(mesh, tokens=["S2L1C"]).setup("fit")
    with pytest.raises(DataError, match="expected terramind_v1_tokenizer"):
        module(mesh, variant="terramind_v1_tiny").setup("fit")
    pack(tmp_path, "train", {"majortom_shard_000001": 5, "ssl4eos12_shard_000001": 4}, FOLDERS, side=72)
    _, store, _ = mesh
    data = module((tmp_path, store, None), val_split=None)
    with pytest.raises(DataError, match=r"does not belong to this shard of 4 samples: .*ssl4eos12_train_0000006"):
        data.setup("fit")


def test_check_reports_offsets_and_gaps(mesh, tmp_path):
    with write_shard(tmp_path, "val", "majortom_shard_000001", ["S2L1C", "S2L2A", "S1RTC"]) as writer:
        random = np.random.default_rng(0)
        for number in range(4):
            level1 = random.integers(1050, 1150, (13, 24, 24)).astype("i2") + 2000 * (np.arange(13) < 10)[:, None, None]
            level2 = random.integers(1050 if number % 2 else 50, 1300, (12, 24, 24)).astype("i2")
            members = {"S2L1C": member(number, "S2L1C", level1.astype("i2")), "S2L2A": member(number, "S2L2A", level2)}
            writer.add(f"k{number}", {**members, "S1RTC": member(number, "S1RTC")})
    data = TerraMeshDataModule(str(tmp_path), ["S2L1C", "S2L2A", "S1RTC"], train_split="val")
    found = {finding.check: finding for finding in data.check_shards() if finding.check.startswith("shards: val")}
    every = [finding for finding in data.check_shards() if finding.check == "shards: val offset"]
    assert [finding.seen.partition(".")[0] for finding in every] == [
        "S2L1C: 4 of 4 samples read have the offset of +1000, 0 do not",
        "S2L2A: 2 of 4 samples read have the offset of +1000, 2 do not",
    ]
    assert "S2L1C and S2L2A differ in 2, e.g. k0" in every[0].seen
    assert "S1RTC: 4 of 4 samples read have missing pixels" in found["shards: val gaps"].seen
    assert found["shards: val"].verdict == "ok"
    assert isinstance(found["shards: val"], Finding)
    missing = list(TerraMeshDataModule(str(tmp_path), ["DEM"]).check_shards())
    assert [finding.verdict for finding in missing] == ["error", "error"]


def test_tiles_of_one_sample_come_apart(tmp_path):
    pack(tmp_path, "train", {"majortom_shard_000001": 3}, ["DEM"], side=136)
    words = ["--data", f"terramesh:{tmp_path}", "--out", str(tmp_path / "t"), "--model", NANO, "--symmetries", "1"]
    assert main(["tokenize", *words]) == 0
    data = module((tmp_path, tmp_path / "t", None), modalities=["DEM"], tokens=["DEM"], val_split=None)
    data.setup("fit")
    order = data.train_data.draw_order(0)
    assert (len(data.train_data), len(set(order))) == (8, 8)  # sample 0 is for validation
    assert len(set(order[:2] // 4)) == 2
    tile = data.train_data[Draw(int(order[0]), (0, 0, 0))]
    number, place = divmod(int(order[0]), 4)
    top, left = 64 * (place // 2), 64 * (place % 2)
    raw = values_of(number, "DEM", 136)[:, top : top + 64, left : left + 64]
    wanted = (raw - MODALITIES["DEM"].mean[0]) / MODALITIES["DEM"].std[0]
    np.testing.assert_allclose(tile["pixels"]["DEM"].numpy(), wanted, rtol=1e-4, atol=1e-5)


needs_chips = pytest.mark.skipif(not CHIPS.is_dir(), reason="real chips are not in ../shared/data/terramesh")


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    root = tmp_path_factory.mktemp("real")
    pack_real(CHIPS, root, "train", 2)
    pack_real(CHIPS, root, "val", 1)
    words = ["--data", f"terramesh:{root}", "--out", str(root / "tokens"), "--model", NANO, "--symmetries", "1"]
    assert main(["tokenize", *words, "--modalities", "S2L2A,LULC,DEM"]) == 0
    return root


@needs_chips
@pytest.mark.slow
def test_masked_modelling_on_real_chips(real, tmp_path):
    data = TerraMeshDataModule(
        str(real), ["S2L2A", "DEM"], NANO, ["S2L2A", "LULC", "DEM"], str(real / "tokens"), batch_size=8
    )
    task = MaskedModellingTask(
        NANO, pixels=["S2L2A", "DEM"], tokens=["S2L2A", "LULC", "DEM"], input_tokens=[32, 64], target_tokens=64,
        lr=2e-3, warmup_steps=5,
    )  # fmt: skip
    diary = Diary(tmp_path / "30.ckpt", 30)
    fit(task, data, tmp_path, diary, max_steps=60)
    assert np.mean(diary.losses[-8:]) < 0.8 * np.mean(diary.losses[:4])


@needs_chips
@pytest.mark.slow
def test_a_tokenizer_on_real_chips(real, tmp_path):
    diary = Diary()
    data = TerraMeshDataModule(str(real), ["DEM"], crop=64, batch_size=4)
    task = TokenizerTask(f"{NANO}_tokenizer_dem", lr=2e-3, warmup_steps=2)
    fit(task, data, tmp_path, diary, ModelCheckpoint(tmp_path), max_steps=40, enable_checkpointing=True)
    assert np.mean(diary.losses[-8:]) < 0.8 * np.mean(diary.losses[:4])
