"""What each arm of a comparison changes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from terramind_plugin.errors import ConfigError
from terramind_plugin.evaluate.arms import DEFAULT_ARMS, check_arms, make_arm

CONFIGS = sorted(Path(__file__).parents[2].glob("configs/*.yaml"))
SETTINGS = {
    "plain": {},
    "tim": {"backbone_tim_modalities": ["LULC"]},
    "tim-cache": {"backbone_tim_modalities": ["LULC"], "backbone_tim_cache": "out/cache"},
    "lora": {"backbone_lora": {"rank": 16}},
    "frozen": {},
    "frozen-cache": {"backbone_feature_cache": "out/cache"},
}


def config(**arguments):
    return {
        "trainer": {
            "callbacks": [{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "mine/best", "monitor": "x"}}],
            "logger": {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "mine"}},
        },
        "model": {
            "class_path": "terratorch.tasks.SemanticSegmentationTask",
            "init_args": {"model_args": {"backbone_modalities": ["S2L1C"], **arguments}, "freeze_backbone": True},
        },
    }


@pytest.mark.parametrize("arm", DEFAULT_ARMS)
@pytest.mark.parametrize(
    "given",
    [
        {"backbone": "terramind_v1_tiny_tim", "backbone_tim_modalities": ["LULC"]},
        {"backbone": "terramind_v1_tiny_tim", "backbone_tim_modalities": ["LULC"], "backbone_tim_cache": True},
    ],
)
def test_only_the_arms_own_settings_are_left(arm, given):
    base = config(**given)
    before = copy.deepcopy(base)
    made = make_arm(base, arm, 3, Path("out"))
    assert base == before
    arguments = made["model"]["init_args"]["model_args"]
    backbone = arguments.pop("backbone")
    assert backbone == ("terramind_v1_tiny_tim" if arm.startswith("tim") else "terramind_v1_tiny")
    assert arguments == {"backbone_modalities": ["S2L1C"], **SETTINGS[arm]}
    assert made["model"]["init_args"]["freeze_backbone"] is arm.startswith("frozen")
    assert made["seed_everything"] == 3


def test_adapters_of_the_configuration_are_kept():
    made = make_arm(config(backbone="terramind_v1_base", backbone_lora={"rank": 4}), "lora", 0, Path("out"))
    assert made["model"]["init_args"]["model_args"]["backbone_lora"] == {"rank": 4}


TRUTH = {
    "modalities": ["S2L1C"],
    "data_root": {"S2L1C": "images", "LULC": "cover"},
    "image_grep": {"S2L1C": "*.tif", "LULC": "*.tif"},
}
TOKENIZER = {"backbone_tim_tokenizer_ckpt_paths": {"LULC": "lulc.pt"}}


def test_the_oracle_gets_the_truth_and_the_others_do_not():
    base = config(backbone="terramind_v1_tiny_tim", **TOKENIZER) | {"data": {"init_args": TRUTH}}
    oracle = make_arm(base, "oracle", 0, Path("out"))
    assert oracle["data"]["init_args"] == TRUTH | {"modalities": ["S2L1C", "LULC"]}
    arguments = oracle["model"]["init_args"]["model_args"]
    assert arguments["backbone"] == "terramind_v1_tiny_tim"
    assert arguments["backbone_tim_observed"] == ["LULC"]
    assert arguments["backbone_tim_tokenizer_ckpt_paths"] == {"LULC": "lulc.pt"}
    again = make_arm(oracle, "oracle", 0, Path("out"))
    assert (again["data"], again["model"]) == (oracle["data"], oracle["model"])
    for arm in DEFAULT_ARMS:
        made = make_arm(oracle, arm, 0, Path("out"))
        assert made["data"]["init_args"] == TRUTH
        assert not {"backbone_tim_observed", *TOKENIZER} & set(made["model"]["init_args"]["model_args"])


def test_an_oracle_without_truth():
    base = config(backbone="terramind_v1_tiny", backbone_tim_modalities=["NDVI"])
    for data in ({}, {"modalities": ["S2L1C"], "train_data_root": {"S2L1C": "images"}}):
        with pytest.raises(ConfigError, match=r"oracle' needs true NDVI: name its folder in data\.init_args"):
            make_arm(base | {"data": {"init_args": data}}, "oracle", 0, Path("out"))


def test_runs_write_to_their_own_folder():
    trainer = make_arm(config(backbone="terramind_v1_tiny"), "plain", 0, Path("out"))["trainer"]
    assert trainer["default_root_dir"] == "out"
    assert trainer["callbacks"][0]["init_args"] == {"dirpath": "out/best", "monitor": "x"}
    assert trainer["logger"]["init_args"]["save_dir"] == "out/mine"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configurations_that_ship_can_be_compared(path):
    for arm in DEFAULT_ARMS:
        make_arm(yaml.safe_load(path.read_text()), arm, 0, Path("out"))


@pytest.mark.parametrize(
    ("name", "images"), [("demo_flood_thinking", ["S2L1C", "S1GRD"]), ("demo_flooded_cover", ["S1GRD"])]
)
def test_the_oracles_of_the_configurations_that_ask_whether_thinking_helps(name, images):
    path = next(path for path in CONFIGS if path.stem == name)
    for arm, modalities in (("plain", images), ("tim", images), ("oracle", [*images, "LULC"])):
        made = make_arm(yaml.safe_load(path.read_text()), arm, 0, Path("out"))
        assert made["data"]["init_args"]["modalities"] == modalities


def test_mistakes():
    with pytest.raises(ConfigError, match=r"Unknown arm 'time'\. Did you mean 'tim'"):
        check_arms(["plain", "time"])
    with pytest.raises(ConfigError, match="at least one arm"):
        check_arms([])
    with pytest.raises(ConfigError, match="got 'prithvi_eo_v2_300'"):
        make_arm(config(backbone="prithvi_eo_v2_300"), "plain", 0, Path("out"))
    assert check_arms(["tim", "plain", "tim"]) == ["tim", "plain"]
