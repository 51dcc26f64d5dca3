"""The wrapper for time series: layers by their numbers, missing dates, messages."""

import pytest
import torch
from terratorch.models.utils import TemporalWrapper

from terramind_plugin.backbones.series import encode_series, read_pooling
from terramind_plugin.errors import ConfigError
from terramind_plugin.integration.temporal import install

PAIR = ("S2L2A", "S1GRD")
LAYERS = [0, 3, 5]


@pytest.fixture(scope="module", autouse=True)
def _installed():
    install()


@pytest.fixture(scope="module")
def series(images):
    """Return three dates of two samples, 32 x 32 pixels."""
    shots = [images(PAIR, 2, 32, 32, seed=date) for date in range(3)]
    return {name: torch.stack([shot[name] for shot in shots], dim=2) for name in PAIR}


def _wrap(tiny, pooling="mean", modalities=PAIR, **kwargs):
    numbers = {key: kwargs.pop(key) for key in ("n_timestamps", "subset_lengths") if key in kwargs}
    return TemporalWrapper(tiny(modalities, depth=6, **kwargs), pooling=pooling, **numbers).eval()


@torch.inference_mode()
def test_layers_keep_their_numbers(tiny, series):
    from terratorch.models.necks import SelectIndices

    for pooling in ("mean", "concat"):
        every = _wrap(tiny, pooling, n_timestamps=3)
        some = _wrap(tiny, pooling, n_timestamps=3, out_indices=LAYERS)
        chosen = [SelectIndices(model.out_channels, [3, 5]) for model in (every, some)]
        assert chosen[0].process_channel_list(every.out_channels) == chosen[1].process_channel_list(some.out_channels)
        for one, other in zip(chosen[0](every(series)), chosen[1](some(series)), strict=True):
            assert torch.equal(one, other)
    with pytest.raises(IndexError, match=r"Layer 2 was not kept. out_indices kept \[0, 3, 5\]"):
        some(series)[2]


@torch.inference_mode()
def test_parts_that_are_concatenated_have_the_width_that_is_said(tiny, series):
    model = _wrap(tiny, "concat", subset_lengths=[1, 2], n_timestamps=3)
    assert [layer.shape[-1] for layer in model(series)] == list(model.out_channels)


@torch.inference_mode()
def test_a_modality_that_lacks_a_date(tiny, series):
    model = _wrap(tiny, "concat", n_timestamps=3)
    mask = torch.tensor([[True, True, True], [True, False, True]])
    got = model(series, modality_mask={"S1GRD": mask})[-1].unflatten(-1, (3, -1))
    whole = model(series)[-1].unflatten(-1, (3, -1))
    assert torch.allclose(got[0], whole[0], atol=1e-5)
    assert torch.allclose(got[1, :, [0, 2]], whole[1, :, [0, 2]], atol=1e-5)
    alone = model.encoder({"S2L2A": series["S2L2A"][1:, :, 1]})[-1]
    assert torch.allclose(got[1, :, 1], alone[0], atol=1e-5)
    # NaN alone says the same once there is a mask.
    marked = {name: image.clone() for name, image in series.items()}
    marked["S1GRD"][1, :, 1] = torch.nan
    said = model(marked, modality_mask={"S1GRD": torch.ones(2, dtype=torch.bool)})[-1].unflatten(-1, (3, -1))
    assert torch.allclose(said, got, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_date_that_no_series_has_does_not_count(tiny, series, pooling):
    model = _wrap(tiny, pooling, (*PAIR, "DEM"))
    dem = torch.randn(2, 1, 32, 32)
    mask = torch.tensor([[True, False, True], [True, True, True]])
    got = model({**series, "DEM": dem}, modality_mask=dict.fromkeys(PAIR, mask))[-1]
    repeated = {**series, "DEM": dem[:, :, None].expand(-1, -1, 3, -1, -1)}
    assert torch.allclose(model(repeated, modality_mask=dict.fromkeys(PAIR, mask))[-1], got, atol=1e-5)
    two = {name: image[:1, :, [0, 2]] for name, image in series.items()}
    assert torch.allclose(got[:1], model({**two, "DEM": dem[:1]})[-1], atol=1e-5)
    three = {name: image[1:] for name, image in series.items()}
    assert torch.allclose(got[1:], model({**three, "DEM": dem[1:]})[-1], atol=1e-5)
    assert not torch.allclose(got[:1], model({**{n: x[:1] for n, x in series.items()}, "DEM": dem[:1]})[-1], atol=1e-3)


@torch.inference_mode()
def test_difference_without_one_of_two_dates_is_none(tiny, series):
    model = _wrap(tiny, "diff")
    pair = {name: image[:, :, :2] for name, image in series.items()}
    mask = torch.tensor([[True, False], [True, True]])
    got = model(pair, modality_mask=dict.fromkeys(PAIR, mask))[-1]
    assert torch.equal(got[0], torch.zeros_like(got[0]))
    assert torch.allclose(got[1:], model({name: image[1:] for name, image in pair.items()})[-1], atol=1e-5)


def test_concat_without_a_number_of_dates(tiny, series):
    from terratorch.models.necks import build_neck_list

    model = _wrap(tiny, "concat")
    with torch.inference_mode():
        assert model(series)[-1].shape[-1] == 3 * 192
    for necks in ([{"name": "SelectIndices", "indices": [1, 3]}], [{"name": "terramind_pyramid"}]):
        with pytest.raises(ConfigError, match="Add backbone_temporal_n_timestamps: NUMBER"):
            build_neck_list(necks, model.out_channels)


@torch.inference_mode()
def test_messages(tiny, series):
    model = _wrap(tiny)
    two = {**series, "S1GRD": series["S1GRD"][:, :, :2]}
    with pytest.raises(ConfigError, match=r"different numbers of dates: S2L2A 3, S1GRD 2\. .* or one date"):
        model(two)
    with pytest.raises(ValueError, match=r"Expected input shape \[B, C, T, H, W\]"):
        model({name: image[:, :, 0] for name, image in series.items()})
    with pytest.raises(ConfigError, match=r"has the shape \[2, 2\], expected \[2\] or \[2, 3\]"):
        model(series, modality_mask={"S1GRD": torch.ones(2, 2)})
    other = TemporalWrapper(torch.nn.Conv2d(12, 4, 1))
    assert other(series["S2L2A"])[0].shape == (2, 4, 32, 32)
    with pytest.raises(ConfigError, match="Conv2d takes no modality_mask"):
        other(series["S2L2A"], modality_mask={"S2L2A": torch.ones(2)})


@torch.inference_mode()
@pytest.mark.parametrize(
    ("pooling", "subsets"), [("mean", None), ("max", None), ("concat", None), ("diff", [1, 2]), ("mean", [2, 1])]
)
def test_vectors_are_pooled_as_by_the_wrapper(tiny, series, pooling, subsets):
    """`terramind embed` pools dates without TerraTorch."""
    model = _wrap(tiny, pooling, n_timestamps=3, subset_lengths=subsets)
    arguments = {"use_temporal": True, "temporal_pooling": pooling, "temporal_subset_lengths": subsets}
    own = read_pooling(arguments)
    mask = {"S1GRD": torch.tensor([[True] * 3, [True, False, True]])}
    some = {"S1GRD": series["S1GRD"]}
    for x, known in ((series, None), (some, mask)):
        wanted = model(x, modality_mask=known)
        got = encode_series(lambda flat, masks: model.encoder(flat, modality_mask=masks), x, known, own.pool)
        for one, other in zip(got, wanted, strict=True):
            assert torch.allclose(one, other, atol=1e-6)
        assert got[-1].shape[-1] == own.widen(model.encoder.out_channels[-1], 3)
