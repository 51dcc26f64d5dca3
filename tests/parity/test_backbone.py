"""Every layer's output equals that of TerraTorch's own TerraMind."""

from functools import partial

import pytest
import torch

ALL = ("S2L2A", "S2L1C", "RGB", "S1GRD", "S1RTC", "DEM")
SIX = {"S2L2A": ["BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2"]}
EXACT, SINGLE = 1e-9, 1e-5


@pytest.fixture
def compare(pair, images, assert_same):
    @torch.no_grad()
    def run(size, modalities, *, pixels=(224, 224), given=None, batch=1, dtype=torch.float64, **kwargs):
        theirs, ours = pair(size, modalities, dtype=dtype, **kwargs)
        x = images(given or modalities, batch, *pixels, dtype=dtype)
        assert_same(ours(x), theirs(dict(x)), EXACT if dtype == torch.float64 else SINGLE)

    return run


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_size(compare, size):
    # Few tokens: at 224 x 224 the large model alone takes as long as a hundred other tests.
    compare(size, ["S2L2A"], pixels=(224, 224) if size in ("tiny", "small") else (64, 96))


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_single_precision(compare, size):
    compare(size, ["S2L1C", "S1GRD"], batch=2, dtype=torch.float32)


@pytest.mark.parametrize("modality", ALL)
def test_modality(compare, modality):
    compare("tiny", [modality], pixels=(96, 96))


def test_all_modalities(compare):
    compare("tiny", ALL, pixels=(96, 96))


def test_new_modality(compare):
    compare("tiny", ["S2L2A", {"THERMAL": 3}], given=["S2L2A", "THERMAL"], pixels=(96, 96))


def test_checkpoint_keys_as_names(compare):
    compare("tiny", ["untok_sen2l2a@224", "untok_dem@224"])


@pytest.mark.parametrize("method", ["mean", "max", "concat", "dict", None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_merge(compare, method, dtype):
    compare("tiny", ["S2L2A", "S1GRD", "DEM"], pixels=(96, 96), merge_method=method, batch=2, dtype=dtype)


@pytest.mark.parametrize("method", ["mean", "max", "concat", "dict", None])
def test_last_modality_missing(compare, method):
    compare("tiny", ["S2L2A", "S1GRD"], given=["S2L2A"], pixels=(96, 96), merge_method=method)


@pytest.mark.parametrize("pixels", [(256, 256), (512, 512), (224, 320), (96, 64)])
def test_other_image_size(compare, pixels):
    compare("tiny", ["S2L2A"], pixels=pixels)


@pytest.mark.parametrize("pixels", [(256, 256), (512, 512)])
def test_other_image_size_in_single_precision(compare, pixels):
    compare("tiny", ["S2L2A", "S1GRD"], pixels=pixels, dtype=torch.float32)


@pytest.mark.parametrize("img_size", [256, 128])
def test_other_native_size(compare, img_size):
    compare("tiny", ["S2L2A"], img_size=img_size, pixels=(256, 256))


@pytest.mark.parametrize("img_size", [224, 256])
def test_positions(backbones, img_size):
    name = "encoder_embeddings.untok_dem@224.pos_emb"
    ours, theirs = (
        backbones.build(f"{source}_v1_tiny", modalities=["DEM"], img_size=img_size).state_dict()[name]
        for source in ("terramind", "terratorch_terramind")
    )
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "base", "large"])
@pytest.mark.parametrize("pixels", [(256, 256), (512, 512)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
def test_other_image_size_of_the_large_models(compare, size, pixels, dtype):
    if (size, pixels, dtype) == ("large", (512, 512), torch.float64):
        pytest.skip("float32 covers it")
    compare(size, ["S2L2A", "S1GRD"], pixels=pixels, dtype=dtype)


@pytest.mark.slow
def test_large_in_single_precision(compare):
    compare("large", ["S2L1C", "S1GRD"], dtype=torch.float32)


@pytest.mark.parametrize("bands", [SIX, {"S2L2A": ["SWIR_2", "RED"], "S1GRD": ["VH"]}], ids=["six", "two of each"])
def test_band_subset(reference, backbones, images, assert_same, tmp_path, bands):
    full = reference("tiny", ["S2L2A", "S1GRD"])
    path = tmp_path / "full.pt"
    torch.save(full.state_dict(), path)
    arguments = {"modalities": ["S2L2A", "S1GRD"], "ckpt_path": str(path), "bands": bands}
    theirs = backbones.build("terratorch_terramind_v1_tiny", **arguments).double().eval()
    ours = backbones.build("terramind_v1_tiny", **arguments).double().eval()
    x = images(["S2L2A", "S1GRD"], 1, 96, 96, dtype=torch.float64)
    x = {name: image[:, : len(bands[name])] if name in bands else image for name, image in x.items()}
    with torch.no_grad():
        assert_same(ours(x), theirs(dict(x)), EXACT)


def registers(count, modalities, method):
    """TerraTorch's registered builders fix the number of registers at 0, its class takes any."""
    from terratorch.models.backbones.terramind.model.terramind_vit import TerraMindViT
    from terratorch.models.backbones.terramind.model.tm_utils import LayerNorm

    return TerraMindViT(
        modalities=modalities,
        merge_method=method,
        dim=192,
        num_heads=3,
        num_register_tokens=count,
        norm_layer=partial(LayerNorm, eps=1e-6, bias=False),
    )


@pytest.mark.parametrize("method", ["mean", "concat", "dict", None])
def test_register_tokens(backbones, scatter, images, assert_same, method):
    theirs = scatter(registers(4, ["S2L2A", "S1GRD"], method)).double().eval()
    ours = backbones.build(
        "terramind_v1_tiny", modalities=["S2L2A", "S1GRD"], merge_method=method, num_register_tokens=4
    )
    ours.double().eval().load_state_dict(theirs.state_dict())
    x = images(["S2L2A", "S1GRD"], 1, 96, 96, dtype=torch.float64)
    with torch.no_grad():
        assert_same(ours(x), theirs(dict(x)), EXACT)
