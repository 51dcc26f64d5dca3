"""Stage 2 from files: stored tokens, tiles of pixels and tokens, whole runs, interrupted and killed runs."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rasterio.transform import from_origin
from safetensors.torch import save_file

from terramind_plugin import MaskedDataModule
from terramind_plugin.builders import build_coords_tokenizer, build_generator, build_image_tokenizer
from terramind_plugin.cli import main
from terramind_plugin.errors import ConfigError, DataError
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.pretrain.loading import Draw, apply_symmetry
from terramind_plugin.pretrain.token_store import TokenFile
from terramind_plugin.raster.writer import write_geotiff

NANO = "terramind_sim_nano"
CONFIGS = Path(__file__).parents[2] / "configs" / "pretrain"
ENDINGS = {"S2L2A": "_S2L2AHand.tif", "LULC": "_LULCHand.tif", "S1GRD": "_S1Hand.tif"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Return files with random weights of tokenizers by modality; seed 1 gives others."""
    folder = tmp_path_factory.mktemp("weights")
    made = {}
    for seed in (0, 1):
        for name in ("S2L2A", "LULC"):
            torch.manual_seed(seed)
            model = build_image_tokenizer(f"{NANO}_tokenizer_{name.lower()}", decoder=False)
            made[name, seed] = folder / f"{name}_{seed}.safetensors"
            save_file(model.state_dict(), made[name, seed])
    return made


def tokenize(data, out, weights, names=("S2L2A", "LULC"), *, seed=0, words=()):
    given = [f"{name}={data / f'{name}Hand'}/*{ENDINGS[name]}" for name in names]
    files = [f"{name}={weights[name, seed]}" for name in names]
    words = [
        *words,
        *(w for x in given for w in ("--data", x)),
        *(w for x in files for w in ("--tokenizer_ckpt_path", x)),
    ]
    return main(["tokenize", "--model", NANO, "--out", str(out), *words])


@pytest.fixture(scope="module")
def store(worlds, weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("store") / "tokens"
    assert tokenize(worlds / "data", out, weights) == 0
    return out


@pytest.fixture(scope="module")
def chips(tmp_path_factory):
    """Return a folder with four chips of 130 x 70 pixels: two tiles each, and a rest."""
    root = tmp_path_factory.mktemp("chips")
    random = np.random.default_rng(0)
    for name in ("S2L2A", "LULC", "S1GRD"):
        (root / f"{name}Hand").mkdir()
        for number in range(4):
            bands = MODALITIES[name].bands
            shape = (len(bands), 130, 70)
            array = random.normal(0, 1, shape) * np.reshape([band.std for band in bands], (-1, 1, 1))
            array = (array + np.reshape([band.mean for band in bands], (-1, 1, 1))).astype(np.float32)
            if name == "LULC":
                array = random.integers(0, 10, shape).astype(np.uint8)
            path = root / f"{name}Hand" / f"chip{number}{ENDINGS[name]}"
            write_geotiff(path, array, crs="EPSG:32632", transform=from_origin(6e5, 5.3e6 + 2e4 * number, 10, 10))
    return root


def test_tokens_are_those_of_the_tokenizer(chips, weights, tmp_path):
    assert tokenize(chips, tmp_path, weights) == 0
    (tmp_path / "any").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1
    data = MaskedDataModule(
        NANO,
        {"S2L2A": str(chips / "S2L2AHand"), "s1grd": str(chips / "S1GRDHand")},
        ["LULC", "S2L2A"],
        str(tmp_path),
        {name: ENDINGS[name] for name in ("S2L2A", "S1GRD")},
        batch_size=2,
    )
    data.setup("fit")
    assert len(data.val_data) == 2
    assert len(data.train_data) == 6
    tokenizer = build_image_tokenizer(f"{NANO}_tokenizer_s2l2a", ckpt_path=weights["S2L2A", 0], decoder=False)
    samples = [data.train_data[number] for number in range(6)]
    drawn = [data.train_data[Draw(number % 6, (0, number))] for number in range(24)]
    for sample in (*samples, *drawn):
        assert sample["pixels"]["S2L2A"].shape == (12, 64, 64)
        assert sample["pixels"]["S1GRD"].shape == (2, 64, 64)
        made = tokenizer.tokenize(sample["pixels"]["S2L2A"][None])[0]
        assert (made == sample["tokens"]["S2L2A"]).float().mean() > 0.98  # sums of another batch, rounded to codes
    # Not the same crop eight times: tiles and symmetries differ.
    assert len({tuple(sample["tokens"]["LULC"].flatten().tolist()) for sample in drawn}) > 12
    places = build_coords_tokenizer(family=NANO).decode(torch.stack([s["sequences"]["coords"] for s in samples]))
    assert places.tolist() == [[10.0, 50.0]] * 6
    batch = next(iter(data.train_dataloader()))
    assert batch["tokens"]["LULC"].shape == (2, 8, 8)
    assert batch["tokens"]["LULC"].dtype == torch.int64
    assert batch["sequences"]["coords"].shape == (2, 3)


def test_classes_are_stored_under_every_symmetry(chips, weights, tmp_path):
    assert tokenize(chips, tmp_path, weights, ["LULC"]) == 0
    file = TokenFile(tmp_path, MODALITIES["LULC"])
    import rasterio

    with rasterio.open(chips / "LULCHand" / f"chip2{ENDINGS['LULC']}") as raster:
        chip = raster.read()
    tokenizer = build_image_tokenizer(f"{NANO}_tokenizer_lulc", ckpt_path=weights["LULC", 0], decoder=False)
    for symmetry in range(8):
        tile = np.ascontiguousarray(apply_symmetry(chip[:, 64:128, :64], symmetry)).astype(np.int64)
        made = tokenizer.tokenize(torch.from_numpy(tile))[0]
        assert (made.numpy() == file.read("chip2", 1, 0, symmetry)).mean() > 0.98


def test_a_store_that_is_there(chips, weights, tmp_path, capsys):
    out = tmp_path / "tokens"
    data = tmp_path / "data"
    (data / "LULCHand").mkdir(parents=True)
    for path in (chips / "LULCHand").iterdir():
        (data / "LULCHand" / path.name).write_bytes(path.read_bytes())
    assert tokenize(data, out, weights, ["LULC"], words=["--symmetries", "1"]) == 0
    path = out / "LULC.safetensors"
    first = path.stat().st_mtime_ns
    chip = sorted((data / "LULCHand").iterdir())[1]
    os.utime(chip, (1, 1))  # of another time, but with the same content
    assert tokenize(data, out, weights, ["LULC"], words=["--symmetries", "1"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert path.stat().st_mtime_ns == first
    for seed, words, message in ((1, ["--symmetries", "1"], "made with weights"), (0, [], "made with symmetries 1")):
        assert tokenize(data, out, weights, ["LULC"], seed=seed, words=words) == 2
        assert message in capsys.readouterr().err
    content = bytearray(chip.read_bytes())
    content[-1] ^= 1
    chip.write_bytes(content)
    assert tokenize(data, out, weights, ["LULC"], words=["--symmetries", "1"]) == 2
    assert f"{path} is out of date: 1 file has changed since the tokens were made" in capsys.readouterr().err
    chip.unlink()
    (data / "LULCHand" / f"new{ENDINGS['LULC']}").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert tokenize(data, out, weights, ["LULC"], words=["--symmetries", "1"]) == 2
    assert "has no tokens of 1 chip, e.g. new" in capsys.readouterr().err
    assert path.stat().st_mtime_ns == first
    assert tokenize(data, out, weights, ["LULC"], words=["--symmetries", "1", "--replace"]) == 0
    assert "new" in TokenFile(out, MODALITIES["LULC"]).chips
    assert [path.name for path in out.iterdir()] == ["LULC.safetensors"]


@pytest.fixture
def module(worlds, store):
    def make(**changes):
        given = {
            "variant": NANO,
            "folders": {"S2L2A": str(worlds / "data" / "S2L2AHand")},
            "suffixes": {"S2L2A": ENDINGS["S2L2A"]},
            "tokens": ["LULC", "S2L2A"],
            "store": str(store),
        }
        return MaskedDataModule(**given | changes)

    return make


def test_mistakes_are_named(module, store, tmp_path, worlds):
    with pytest.raises(ConfigError, match="There is no model"):
        module(variant="terramind_nano")
    with pytest.raises(ConfigError, match="folders and tokens must each name"):
        module(tokens=[])
    with pytest.raises(ConfigError, match="both train_split and val_split"):
        module(train_split="a.txt")
    with pytest.raises(DataError, match=r"DEM\.safetensors is not there\. Make it: terramind tokenize"):
        module(tokens=["DEM"]).setup("fit")
    with pytest.raises(DataError, match="not a tokenizer of terramind_v1_tiny"):
        module(variant="terramind_v1_tiny").setup("fit")
    (tmp_path / "LULC.safetensors").write_bytes((store / "LULC.safetensors").read_bytes()[:-100])
    with pytest.raises(DataError, match="is not a file of a token store"):
        module(store=str(tmp_path), tokens=["LULC"]).setup("fit")
    changed = tmp_path / "S2L2A"
    changed.mkdir()
    for path in (worlds / "data" / "S2L2AHand").iterdir():
        (changed / path.name).write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DataError, match="is out of date: 12 files have changed since the tokens were made"):
        module(folders={"S2L2A": str(changed)}).setup("fit")


@pytest.mark.parametrize(("name", "message"), [("RGB", "RGB has no tokenizer"), ("coords", "coords is not a raster")])
def test_what_has_no_tokens(worlds, tmp_path, name, message, capsys):
    assert main(["tokenize", "--model", NANO, "--data", f"{name}={worlds}", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def config(worlds, store, tmp_path):
    """Write the shipped configuration for the small data set, with the changes given, and return its path."""

    def make(folder, **changes):
        given = yaml.safe_load((CONFIGS / "masked_nano.yaml").read_text())
        data, model, trainer = given["data"]["init_args"], given["model"]["init_args"], given["trainer"]
        data["folders"] = {name: str(worlds / "data" / f"{name}Hand") for name in ("S2L2A", "S1GRD")}
        data["suffixes"] = {name: ENDINGS[name] for name in data["folders"]}
        data |= {"tokens": ["S2L2A", "LULC"], "store": str(store), "batch_size": 3}
        data |= {key: str(worlds / "splits" / Path(data[key]).name) for key in ("train_split", "val_split")}
        model |= {"pixels": ["S2L2A", "S1GRD"], "tokens": ["S2L2A", "LULC"], "warmup_steps": 2, "lr": 3e-3}
        model |= {"lead_in_target_alphas": {"tokens": 0, "sequences": 0, "tokens.LULC": 1}}
        logger = {"save_dir": str(tmp_path / folder), "name": "", "version": "", "flush_logs_every_n_steps": 1}
        trainer["logger"] = {"class_path": "CSVLogger", "init_args": logger}
        trainer["callbacks"] = trainer["callbacks"][1:]
        trainer["callbacks"][1]["init_args"] |= {"dirpath": str(tmp_path / folder), "every_n_train_steps": 2}
        trainer |= {"max_steps": 24, "val_check_interval": 12, "log_every_n_steps": 1, "enable_progress_bar": False}
        trainer |= {"enable_model_summary": False, "default_root_dir": str(tmp_path / folder)} | changes
        path = tmp_path / f"{folder}.yaml"
        path.write_text(yaml.safe_dump(given))
        return path

    return make


def read_losses(folder, name="train/loss"):
    with (folder / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row[name]}


def test_the_configuration_trains_and_its_checkpoint_generates(config, tmp_path):
    assert main(["fit", "--config", str(config("run"))]) == 0
    losses = list(read_losses(tmp_path / "run").values())
    assert len(losses) == 24
    assert np.mean(losses[-6:]) < 0.9 * np.mean(losses[:6])
    first, last = read_losses(tmp_path / "run", "val/loss").values()
    assert last < first
    generator = build_generator(NANO, ["S2L2A", "S1GRD"], ["LULC", "coords"], ckpt_path=tmp_path / "run" / "last.ckpt")
    made = generator({"S1GRD": torch.zeros(1, 2, 64, 64)})
    assert made["LULC"].shape == (1, 10, 64, 64)


def start(*words):
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "terramind_plugin.cli", "fit"]
    return subprocess.Popen(
        [*program, *map(str, words)], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_next_batch(config, tmp_path):
    whole = start("--config", config("whole"))
    output, _ = whole.communicate(timeout=1500)
    assert whole.returncode == 0, output[-3000:]
    cut = start("--config", config("cut"))
    metrics, deadline = tmp_path / "cut" / "metrics.csv", time.monotonic() + 1200
    while cut.poll() is None and time.monotonic() < deadline:
        if metrics.is_file() and (tmp_path / "cut" / "last.ckpt").is_file() and len(read_losses(metrics.parent)) >= 7:
            break
        time.sleep(0.02)
    cut.send_signal(signal.SIGKILL)
    assert cut.wait() == -signal.SIGKILL, "it ended before it could be killed"
    cut.stdout.close()
    saved = torch.load(tmp_path / "cut" / "last.ckpt", weights_only=False)["global_step"]
    on = start("--config", config("on"), "--ckpt_path", tmp_path / "cut" / "last.ckpt")
    output, _ = on.communicate(timeout=1500)
    assert on.returncode == 0, output[-3000:]
    wanted, before, after = (read_losses(tmp_path / name) for name in ("whole", "cut", "on"))
    assert 0 < saved < 24
    assert min(after) == saved
    assert max(after) == 23
    assert {**before, **after} == wanted
    ended = [torch.load(tmp_path / name / "last.ckpt", weights_only=False)["state_dict"] for name in ("whole", "on")]
    assert all(torch.equal(value, ended[1][name]) for name, value in ended[0].items())


@pytest.mark.slow
def test_two_processes(config, tmp_path):
    """Plain ddp: it stops at the second step if a parameter that trains has no gradient."""
    run = start("--config", config("two", devices=2, strategy="ddp", max_steps=8, val_check_interval=1))
    output, _ = run.communicate(timeout=1500)
    assert run.returncode == 0, output[-3000:]
    losses = read_losses(tmp_path / "two")
    assert len(losses) == 8
    assert all(np.isfinite(list(losses.values())))
    assert read_losses(tmp_path / "two", "val/LULC")


def test_configurations_that_ship_are_possible():
    """Budgets, modalities and data fit each other; the base one is too large to train here."""
    from terramind_plugin.pretrain.masked import make_plan

    for name in ("masked_nano", "masked_base"):
        given = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        model, data = given["model"]["init_args"], given["data"]["init_args"]
        defaults = {"sequences": [], "input_alphas": None, "target_alphas": None}
        plan = make_plan(defaults | model)
        module = MaskedDataModule(**data)
        assert list(plan.pixels) == list(module.folders)
        assert list(plan.tokens) == module.names
        assert bool(plan.sequences) == module.has_coords
        assert model["variant"] == data["variant"]
