"""Checkpoints of fine-tuned tasks, TerraTorch's own and ours."""

import pytest
import torch

from terramind_plugin.builders import build_backbone
from terramind_plugin.errors import WeightsError
from terramind_plugin.model.modalities import MODALITIES

PAIR = ["S2L2A", "S1GRD"]
THREE = ["NIR_NARROW", "RED", "BLUE"]
S2_KEY = "encoder_embeddings.untok_sen2l2a@224.proj.weight"
THEIRS, OURS = "terratorch_terramind_v1_tiny", "terramind_v1_tiny"


@pytest.fixture(scope="module")
def task(backbones):
    """Return a segmentation task of TerraTorch."""
    from terratorch.tasks import SemanticSegmentationTask

    def make(backbone, seed=0, **kwargs):
        torch.manual_seed(seed)
        model_args = {
            "backbone": backbone,
            "backbone_modalities": PAIR,
            "necks": [
                {"name": "SelectIndices", "indices": [2, 5, 8, 11]},
                {"name": "ReshapeTokensToImage", "remove_cls_token": False},
                {"name": "LearnedInterpolateToPyramidal"},
            ],
            "decoder": "UNetDecoder",
            "decoder_channels": [32, 16, 16, 8],
            "num_classes": 2,
            **kwargs,
        }
        return SemanticSegmentationTask(model_args=model_args, model_factory="EncoderDecoderFactory").eval()

    return make


@pytest.fixture(scope="module")
def checkpoint(task, tmp_path_factory):
    """Return the path of a task's checkpoint, written by Lightning, and the weights of its backbone."""
    from lightning.pytorch import Trainer

    def make(backbone, **kwargs):
        path = tmp_path_factory.mktemp("task") / "best.ckpt"
        module = task(backbone, **kwargs)
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(path)
        encoder = module.model.encoder
        if kwargs.get("backbone_use_temporal"):
            encoder = encoder.encoder
        return path, {name: value.clone() for name, value in encoder.state_dict().items()}

    return make


@pytest.fixture(scope="module", params=[THEIRS, OURS])
def plain(request, checkpoint):
    return checkpoint(request.param)


@pytest.fixture(scope="module", params=[THEIRS, OURS])
def three_bands(request, checkpoint):
    return checkpoint(request.param, backbone_bands={"S2L2A": THREE})


def assert_same(model, tensors):
    assert set(model.state_dict()) == set(tensors)
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[name]), name


def test_backbone_of_a_task(plain):
    path, tensors = plain
    assert_same(build_backbone(OURS, PAIR, ckpt_path=path), tensors)


@pytest.mark.parametrize("backbone", [THEIRS, OURS])
def test_backbone_of_a_time_series_task(checkpoint, backbone):
    path, tensors = checkpoint(backbone, backbone_use_temporal=True)
    assert_same(build_backbone(OURS, PAIR, ckpt_path=path), tensors)


def test_one_modality_of_two(plain):
    path, tensors = plain
    model = build_backbone(OURS, ["S1GRD"], ckpt_path=path)
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


def test_the_same_bands(three_bands):
    path, tensors = three_bands
    assert_same(build_backbone(OURS, PAIR, ckpt_path=path, bands={"S2L2A": THREE}), tensors)


@pytest.mark.parametrize("bands", [["BLUE", "NIR_NARROW", "RED"], ["RED"], ["B04", "B8A"]])
def test_other_order_or_fewer_bands(three_bands, bands):
    path, tensors = three_bands
    model = build_backbone(OURS, PAIR, ckpt_path=path, bands={"S2L2A": bands})
    got = model.state_dict()[S2_KEY].unflatten(1, (256, len(bands)))
    stored = tensors[S2_KEY].unflatten(1, (256, 3))
    s2 = MODALITIES["S2L2A"]
    order = [[s2.band_index(b) for b in THREE].index(s2.band_index(band)) for band in bands]
    assert torch.equal(got, stored[..., order])


def test_band_that_the_checkpoint_lacks(three_bands):
    path, _ = three_bands
    with pytest.raises(
        WeightsError, match=r"no weights for band B03. The checkpoint has \['NIR_NARROW', 'RED', 'BLUE'\]"
    ):
        build_backbone(OURS, PAIR, ckpt_path=path, bands={"S2L2A": ["RED", "GREEN"]})


def test_all_bands_from_a_checkpoint_of_three(three_bands):
    path, _ = three_bands
    with pytest.raises(WeightsError, match="no weights for band B01"):
        build_backbone(OURS, PAIR, ckpt_path=path)


def test_checkpoint_with_all_bands_in_another_order(checkpoint):
    bands = list(reversed([band.common_name for band in MODALITIES["S2L2A"].bands]))
    path, tensors = checkpoint(OURS, backbone_bands={"S2L2A": bands})
    model = build_backbone(OURS, PAIR, ckpt_path=path)
    got = model.state_dict()[S2_KEY].unflatten(1, (256, 12))
    assert torch.equal(got, tensors[S2_KEY].unflatten(1, (256, 12)).flip(-1))


@pytest.mark.parametrize("method", ["mean", "concat"])
def test_a_task_of_terratorch_becomes_ours(task, images, method):
    theirs = task(THEIRS, backbone_merge_method=method)
    if method == "concat":
        theirs.model.encoder.missing_mod_token.data.zero_()
    ours = task(OURS, seed=1, backbone_merge_method=method)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(PAIR, 2, 224, 224)
    with torch.no_grad():
        got, want = ours(x).output, theirs(dict(x)).output
    assert torch.allclose(got, want, atol=1e-5 * max(1.0, want.abs().max().item()))


def test_our_task_becomes_terratorchs(task, images):
    ours, theirs = task(OURS, backbone_drop_path_rate=0.1), task(THEIRS, seed=1)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    x = images(PAIR, 2, 64, 64)
    with torch.no_grad():
        assert torch.allclose(ours(x).output, theirs(dict(x)).output, atol=1e-5)


def test_start_from_a_task(task, plain):
    path, tensors = plain
    module = task(OURS, seed=2, backbone_ckpt_path=str(path))
    assert_same(module.model.encoder, tensors)
