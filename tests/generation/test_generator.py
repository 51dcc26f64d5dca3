"""What a user of the generators sees, case by case against TerraTorch's weak spots."""

import logging

import pytest
import torch

from terramind_plugin.builders import build_generator
from terramind_plugin.errors import ConfigError, WeightsError, WeightsNotFoundError
from terramind_plugin.generation.generator import TerraMindGenerator
from terramind_plugin.generation.locations import PairScores
from terramind_plugin.model.modalities import find
from tests.generation.conftest import scatter_weights

STEPS = 2


pytestmark = pytest.mark.usefixtures("small_tokenizers")


@pytest.fixture
def build(vocabulary):
    def make(modalities=("S2L2A",), outputs=("S1GRD", "LULC"), seed=0, **kwargs):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = build_generator(
                "terramind_v1_tiny",
                list(modalities),
                list(outputs),
                **{"tokenizer_file": vocabulary, "timesteps": STEPS, **kwargs},
            )
            return model if "ckpt_path" in kwargs else scatter_weights(model)

    return make


@pytest.fixture
def raw(image):
    """Return images in the units of their modality."""

    def make(*names, **kwargs):
        given = {}
        for name in names:
            modality = find(name)
            mean, std = (torch.tensor(values)[:, None, None] for values in (modality.mean, modality.std))
            given[name] = image(name, **{"batch": 2, "height": 32, "width": 32, **kwargs}) * std + mean
        return given

    return make


def test_call_of_the_tutorials(build, raw):
    model = build(outputs=["S1GRD", "DEM", "LULC"], standardize=True)
    x = raw("S2L2A")["S2L2A"]
    out = model(x, timesteps=3, verbose=False)
    assert list(out) == ["S1GRD", "DEM", "LULC"]
    assert {name: list(image.shape[1:]) for name, image in out.items()} == {
        "S1GRD": [2, 32, 32],
        "DEM": [1, 32, 32],
        "LULC": [10, 32, 32],
    }
    assert not any(image.requires_grad for image in out.values())
    for call in ({"S2L2A": x}, {"sen2l2a": x}):
        again = model(call, timesteps=3)
        assert all(torch.equal(again[name], out[name]) for name in out)
    assert torch.equal(model(S2L2A=x, timesteps=3)["DEM"], out["DEM"])


def test_units(build, raw):
    x = raw("S2L2A")
    model = build(outputs=["S1GRD", "LULC"])
    modality = find("S2L2A")
    mean, std = (torch.tensor(values)[:, None, None] for values in (modality.mean, modality.std))
    plain = model({"S2L2A": (x["S2L2A"] - mean) / std})
    units = model(x, standardize=True)
    assert torch.equal(units["LULC"], plain["LULC"])
    radar = find("S1GRD")
    want = plain["S1GRD"] * torch.tensor(radar.std)[:, None, None] + torch.tensor(radar.mean)[:, None, None]
    torch.testing.assert_close(units["S1GRD"], want)


def test_a_second_call_gives_the_same_and_changes_nothing(build, raw):
    model, x = build(standardize=True), raw("S2L2A")
    before = x["S2L2A"].clone()
    first, second = model(x), model(x)
    assert torch.equal(x["S2L2A"], before)
    assert list(x) == ["S2L2A"]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_offset_is_the_same_in_every_build(build, raw):
    offsets = [build(offset={"S2L2A": 1000.0}).standardisation["S2L2A"].mean for _ in range(3)]
    assert all(torch.equal(offset, offsets[0]) for offset in offsets)
    torch.testing.assert_close(offsets[0].flatten(), torch.tensor(find("S2L2A").mean) + 1000)
    x = raw("S2L2A")
    shifted = {"S2L2A": x["S2L2A"] + 1000}
    plain, moved = build(standardize=True)(x), build(standardize=True, offset={"S2L2A": 1000.0})(shifted)
    torch.testing.assert_close(moved["LULC"], plain["LULC"], atol=1e-3, rtol=1e-3)
    with pytest.raises(ConfigError, match="offset names 'DEM'"):
        build(offset={"DEM": 1.0})


def test_standardisation_moves_with_the_model_but_not_into_checkpoints(build):
    model = build(standardize=True).double()
    assert model.standardisation["S2L2A"].mean.dtype == torch.float64
    assert not any("standardisation" in name for name in model.state_dict())


def test_evaluation_mode(build):
    assert not any(module.training for module in build().modules())


def test_global_random_numbers_do_not_matter(build, raw):
    model, x = build(), raw("S2L2A")
    torch.manual_seed(1)
    first = model(x)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = model(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(model(x, seed=1)["S1GRD"], first["S1GRD"])
    assert not torch.equal(model(x, seed=None)["S1GRD"], model(x, seed=None)["S1GRD"])


def test_a_sample_is_the_same_alone_and_in_a_batch(build, raw):
    model, x = build(decoding_steps=2), raw("S2L2A", batch=3)
    together = model(x, seed=[3, 4, 5])
    for index in (0, 2):
        alone = model({"S2L2A": x["S2L2A"][index : index + 1]}, seed=3 + index)
        for name, image in together.items():
            torch.testing.assert_close(alone[name][0], image[index], atol=1e-4, rtol=1e-4)


def test_non_square(build, raw):
    model = build(["S2L2A", "LULC"], ["S1GRD"])
    out = model({**raw("S2L2A", height=32, width=64), "LULC": torch.randint(10, (2, 32, 64))})
    assert out["S1GRD"].shape == (2, 2, 32, 64)


def test_decoding_of_each_output(build, raw):
    model = build(decoding_steps=[1, 3], temps=[0.0, 0.7], top_p=[0.0, 0.5], top_k=[0, 9])
    assert [how.steps for how in model.decoding.values()] == [1, 3]
    model(raw("S2L2A"))
    with pytest.raises(ConfigError, match="decoding_steps has 3 values for the 2 modalities"):
        build(decoding_steps=[1, 2, 3])


def test_an_image_from_a_place(build):
    model = build(modalities=["coords"], outputs=["LULC"])
    places = torch.tensor([[11.5, 48.25], [-70.0, -33.5]])
    out = model(places, image_size=(32, 48))["LULC"]
    assert out.shape == (2, 10, 32, 48)
    near = model(coords=places + 0.1, image_size=(32, 48))["LULC"]
    assert torch.equal(near, out)
    assert not torch.equal(model(places.flip(0), image_size=(32, 48))["LULC"], out)


def test_places_of_an_image(build, raw):
    model, x = build(outputs=["coords"]), raw("S2L2A")
    assert model(x)["coords"].shape == (2, 2)
    places = model.locate(x, count=4)
    assert places.positions.shape == (2, 4, 2)
    assert places.positions[..., 0].abs().max() <= 180
    assert places.positions[..., 1].abs().max() <= 90
    assert (places.probabilities.diff(dim=1) <= 0).all()
    assert 0 < places.probabilities.min() <= places.probabilities.max() < 1
    with pytest.raises(ConfigError, match="locate needs coords"):
        build().locate(x)


def test_probabilities_of_places(build, raw):
    """The likeliest of all positions, by scoring each of a small vocabulary's."""
    model, x = build(outputs=["coords"]), raw("S2L2A", batch=1)
    first, second = [300, 301, 302], [1000, 1001]
    pairs, probabilities = PairScores(model.sampler, "coords", x, first, second).likeliest(6)
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert sorted(map(tuple, pairs[0].tolist())) == [(lat, lon) for lat in first for lon in second]


def test_only_the_needed_parts_are_built(build):
    model = build(modalities=["S2L2A", "NDVI"], outputs=["S1GRD", "LULC"])
    parts = {key: (tok.encoder is not None, tok.decoder is not None) for key, tok in model.tokenizer.items()}
    assert parts == {
        "tok_ndvi@224": (True, False),
        "tok_sen1grd@224": (False, True),
        "tok_lulc@224": (False, True),
    }


@pytest.mark.parametrize("prefix", ["", "sampler.model.", "model.encoder.sampler.model."])
def test_ckpt_path(build, raw, tmp_path, prefix):
    source = build(seed=1)
    path = tmp_path / "model.pt"
    torch.save({prefix + name: value for name, value in source.sampler.model.state_dict().items()}, path)
    model = build(seed=2, ckpt_path=path)
    want = source.sampler.model.state_dict()
    assert all(torch.equal(value, want[name]) for name, value in model.sampler.model.state_dict().items())


def test_ckpt_path_with_tokenizers(build, raw, tmp_path, caplog):
    outputs = ["S1GRD", "LULC"]
    source = build(["S2L2A", "LULC"], outputs, seed=1)
    path = tmp_path / "model.pt"
    torch.save(source.state_dict(), path)
    with caplog.at_level(logging.WARNING):
        model = build(["S2L2A", "LULC"], outputs, seed=2, ckpt_path=path)
    assert not caplog.records
    x = raw("S2L2A")
    first, second = source(x), model(x)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_ckpt_path_without_tokenizers_is_said(build, tmp_path, caplog):
    path = tmp_path / "model.pt"
    torch.save(build().sampler.model.state_dict(), path)
    with caplog.at_level(logging.WARNING):
        build(ckpt_path=path)
    assert "S1GRD: its tokenizer has random weights" in caplog.text


def test_incomplete_ckpt_path(build, tmp_path):
    weights = build().sampler.model.state_dict()
    path = tmp_path / "model.pt"
    torch.save({name: value for name, value in weights.items() if not name.startswith("decoder.3.")}, path)
    with pytest.raises(WeightsError, match=r"missing \(.*decoder\.3"):
        build(ckpt_path=path)
    torch.save({name: value for name, value in weights.items() if not name.startswith("decoder_embeddings")}, path)
    with pytest.raises(WeightsError, match="holds no TerraMind decoder"):
        build(ckpt_path=path)
    with pytest.raises(WeightsNotFoundError, match="not found"):
        build(ckpt_path=tmp_path / "nowhere.pt")


def test_pretrained_without_network(build):
    with pytest.raises(WeightsNotFoundError):
        build(pretrained=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"decoding_step": 2}, "Did you mean 'decoding_steps'"),
        ({"modalities": []}, "modalities is empty"),
        ({"modalities": ["S1"]}, "ambiguous"),
        ({"modalities": ["caption"]}, "no captions"),
        ({"modalities": ["LULC", "LULC"]}, "named twice"),
        ({"outputs": []}, "must be a list of names"),
        ({"outputs": ["RGB"]}, "RGB has no tokens"),
        ({"pretrained": "model.pt"}, "true or false"),
        ({"patch_size": 8}, "patches of 16"),
        ({"img_size": 100}, "multiple of 16"),
        ({"tokenizer_ckpt_paths": {"DEM": "x.pt"}}, "no tokenizer of"),
    ],
)
def test_impossible_arguments(build, arguments, message):
    with pytest.raises(ConfigError, match=message):
        build(**arguments)


def test_arguments_from_a_command_line():
    """TerraTorch's command line hands on what is below model_args as texts."""
    model = build_generator(
        "terramind_v1_tiny",
        modalities="[S2L2A, {THERMAL: 1}]",
        output_modalities="[S1GRD, LULC]",
        pretrained="false",
        standardize="true",
        timesteps="10",
        temps="[0.5, 1]",
        offset="{S1GRD: 2.5}",
        img_size="[64, 128]",
    )
    assert (model.modalities, model.output_modalities) == (["S2L2A", "THERMAL"], ["S1GRD", "LULC"])
    assert (model.timesteps, model.standardize) == (10, True)
    assert [model.decoding[name].temperature for name in model.output_modalities] == [0.5, 1]
    shift = model.standardisation["S1GRD"].mean.flatten() - torch.tensor(find("S1GRD").mean)
    assert torch.allclose(shift, torch.tensor(2.5))
    assert model.sampler.model.encoder_embeddings["untok_sen2l2a@224"].pos_emb.shape[1] == 4 * 8


def test_impossible_calls(build, raw):
    model = build()
    x = raw("S2L2A")
    with pytest.raises(ConfigError, match="does not take"):
        model({**x, "DEM": x["S2L2A"][:, :1]})
    with pytest.raises(ConfigError, match="got no input"):
        model()
    with pytest.raises(ConfigError, match="expected 12 channels, got 3"):
        model(x["S2L2A"][:, :3])
    with pytest.raises(ConfigError, match="multiples of 16"):
        model(x["S2L2A"][..., :20])
    with pytest.raises(ConfigError, match="LULC is both input and target"):
        build(["S2L2A", "LULC"])({**x, "LULC": torch.zeros(2, 32, 32, dtype=torch.long)})


def test_missing_tokenizers(build):
    sampler = build().sampler
    with pytest.raises(ConfigError, match="S1GRD needs the decoder of its tokenizer"):
        TerraMindGenerator(sampler, {})


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_registered_name(size):
    from terratorch.registry import FULL_MODEL_REGISTRY

    import terramind_plugin

    model = FULL_MODEL_REGISTRY.build(
        f"terramind_v1_{size}_generate", modalities=["S2L2A"], output_modalities=["LULC"], standardize=True
    )
    assert isinstance(model, terramind_plugin.TerraMindGenerator)
    with pytest.raises(ConfigError, match=f"terramind_v1_{size}_generate has no argument 'output_modality'"):
        FULL_MODEL_REGISTRY.build(f"terramind_v1_{size}_generate", output_modality=["LULC"])


def test_advice_that_a_generator_can_follow(build):
    model = build()
    for name, shape, message in [
        ("S2L2A", (6, 64, 64), r"for a selection name them, e\.g\. bands: \{S2L2A: \[\.\.\.\]\}"),
        ("S2L2A", (12, 3, 64, 64), r"A generator takes one date at a time\.$"),
        ("DEM", (1, 64, 64), r"It takes \['S2L2A'\]\. Give it what its argument modalities names\.$"),
    ]:
        with pytest.raises(ConfigError, match=message):
            model({name: torch.zeros(1, *shape)})


def test_coordinates_without_weights_need_no_hub(build, caplog):
    model = build(["coords"], ["LULC"], tokenizer_file=None)
    assert "only suit random weights" in caplog.text
    near = model.coords.decode(model.coords.encode([[11.6, 48.1]]).ids)
    assert near.tolist() == [[11.5, 48.0]]
    with pytest.raises(WeightsNotFoundError, match="tokenizer_file"):
        build_generator("terramind_v1_tiny", ["coords"], ["LULC"], pretrained=True)
