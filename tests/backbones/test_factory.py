"""The backbone in TerraTorch's models."""

import pytest
import torch

PAIR = ["S2L2A", "S1GRD"]
CHOSEN = [2, 5, 8, 11]
CHAIN = [
    {"name": "SelectIndices", "indices": CHOSEN},
    {"name": "ReshapeTokensToImage", "remove_cls_token": False},
    {"name": "LearnedInterpolateToPyramidal"},
]


@pytest.fixture(scope="module")
def build(backbones):
    from terratorch.models import EncoderDecoderFactory

    def make(necks, *, decoder="UNetDecoder", task="segmentation", seed=0, backbone="terramind_v1_tiny", **kwargs):
        if decoder == "UNetDecoder":
            kwargs = {"decoder_channels": [32, 16, 16, 8], **kwargs}
        torch.manual_seed(seed)
        return (
            EncoderDecoderFactory()
            .build_model(
                task=task,
                backbone=backbone,
                decoder=decoder,
                necks=necks,
                num_classes=3,
                backbone_modalities=PAIR,
                **kwargs,
            )
            .eval()
        )

    return make


@pytest.mark.parametrize("out_indices", [None, CHOSEN])
@pytest.mark.parametrize("size", [(64, 64), (64, 96)])
def test_published_chain(build, images, out_indices, size):
    kwargs = {"backbone_out_indices": out_indices} if out_indices else {}
    assert build(CHAIN, **kwargs)(images(PAIR, 2, *size)).output.shape == (2, 3, *size)


def test_selection_in_the_backbone_changes_nothing(build, images):
    plain, chosen = build(CHAIN), build(CHAIN, backbone_out_indices=CHOSEN)
    chosen.load_state_dict(plain.state_dict())
    x = images(PAIR)
    assert torch.equal(plain(x).output, chosen(x).output)


@pytest.mark.parametrize("out_indices", [None, CHOSEN])
def test_pyramid_instead_of_the_chain(build, images, out_indices):
    kwargs = {"backbone_out_indices": out_indices} if out_indices else {}
    plain, ours = build(CHAIN), build([{"name": "terramind_pyramid"}], **kwargs)
    ours.load_state_dict({name.replace("neck.2.", "neck.0."): value for name, value in plain.state_dict().items()})
    x = images(PAIR, 2, 64, 96)
    with torch.inference_mode():  # in training the layout in memory may differ
        assert torch.equal(plain(x).output, ours(x).output)


def test_no_select_indices(build, images):
    model = build(CHAIN[1:], backbone_out_indices=CHOSEN)
    assert model(images(PAIR)).output.shape == (2, 3, 64, 64)


def test_without_a_neck_that_reshapes(build, images):
    model = build(CHAIN[:2], decoder="FCNDecoder", backbone_out_indices=CHOSEN)
    assert model(images(PAIR)).output.shape == (2, 3, 64, 64)


@pytest.mark.parametrize("index", [-1, 11, 5])
def test_classification(build, images, index):
    necks = [{"name": "AggregateTokens", "pooling": "mean", "index": index}]
    model = build(necks, decoder="IdentityDecoder", task="classification", backbone_out_indices=CHOSEN)
    assert model(images(PAIR)).output.shape == (2, 3)


@pytest.mark.parametrize("necks", [CHAIN, [{"name": "terramind_pyramid"}]])
@pytest.mark.parametrize("method", ["mean", "concat"])
def test_size_that_is_no_multiple(build, images, necks, method):
    model = build(necks, backbone_merge_method=method)
    assert model(images(PAIR, 1, 60, 90)).output.shape == (1, 3, 60, 90)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("out_indices", [None, CHOSEN])
def test_time_series(build, images, pooling, out_indices):
    kwargs = {"backbone_out_indices": out_indices} if out_indices else {}
    model = build(
        [{"name": "terramind_pyramid"}], backbone_use_temporal=True, backbone_temporal_pooling=pooling, **kwargs
    )
    x = {name: torch.stack([image, image], dim=2) for name, image in images(PAIR, 2, 64, 64).items()}
    assert model(x).output.shape == (2, 3, 64, 64)


def test_mask_passes_through(build, images):
    model = build(CHAIN)
    x = images(PAIR)
    got = model(x, modality_mask={"S1GRD": torch.tensor([True, False])}).output
    alone = model({"S2L2A": x["S2L2A"][1:]}).output
    assert torch.allclose(got[1:], alone, atol=1e-5)


def test_padding_is_for_the_factory(build, images):
    model = build(CHAIN, backbone_padding="constant", backbone_patch_size=16)
    assert model.padding == "constant"
    assert model(images(PAIR, 1, 50, 50)).output.shape == (1, 3, 50, 50)


def test_freezing(build):
    model = build(CHAIN, backbone_drop_path_rate=0.5)
    model.freeze_encoder()
    model.train()
    assert not any(p.requires_grad for p in model.encoder.parameters())
    assert not any(module.training for module in model.encoder.modules())
    assert model.decoder.training


def test_same_as_terratorchs_model(build, images):
    theirs = build(CHAIN, backbone="terratorch_terramind_v1_tiny")
    ours = build(CHAIN, seed=1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = images(PAIR, 2, 224, 224)
    with torch.no_grad():
        got, want = ours(x).output, theirs(dict(x)).output
    assert torch.allclose(got, want, atol=1e-5 * want.abs().max().item())
