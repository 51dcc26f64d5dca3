"""Coordinates, with a vocabulary file made here in the format of the published one."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from terramind_plugin.builders import build_coords_tokenizer
from terramind_plugin.errors import ConfigError, DataError, WeightsError, WeightsNotFoundError
from terramind_plugin.tokenizers.coordinates import COORDS_VOCABULARIES, CoordsTokenizer

SPECIAL = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", "[S_0]", "[S_1]", "[S_2]"]
WORDS = ["a", "green", "field", "river", "with", "two", "boats", ".", ",", "##s"]
PLACES = [[11.5, 48.25], [-180.0, -90.0], [180.0, 90.0], [0.0, 0.0], [-0.25, 0.25], [151.25, -33.75]]


def words(axis, limit):
    return [f"{axis}={index / 4:.2f}" for index in range(-4 * limit, 4 * limit + 1)]


def save(path, *, places=(), special=SPECIAL):
    vocab = {word: index for index, word in enumerate([*special, *WORDS, *places])}
    tokenizer = Tokenizer(WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.decoder = WordPieceDecoder()
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=True) for word in special])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in places])
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return save(tmp_path_factory.mktemp("vocabulary") / "config.json", places=words("lat", 90) + words("lon", 180))


@pytest.fixture(scope="module")
def coords(file):
    return build_coords_tokenizer(file)


@pytest.fixture(scope="module")
def reference(backbones):
    from terratorch.models.backbones.terramind.tokenizer.text import text_tokenizer

    return text_tokenizer


def test_ids_are_those_of_terratorch(coords, reference, file):
    places = torch.tensor([*PLACES, [11.4, 48.3], [-77.03, -12.04]])
    found = coords.encode(places)
    want = reference.CoordsTokenizer(tokenizer_file=str(file)).encode(places)
    assert torch.equal(found.ids, want["tensor"])
    assert torch.equal(found.mask, ~want["input_mask"])


def test_positions_are_those_of_terratorch(coords, reference, file):
    ids = coords.encode(PLACES).ids
    want = reference.CoordsTokenizer(tokenizer_file=str(file)).decode_text({"coords": {"tensor": ids}})
    assert coords.decode(ids).tolist() == want == PLACES


def test_text_form(coords):
    ids = coords.encode([(11.5, 48.25)]).ids[0].tolist()
    assert coords.tokenizer.decode(ids, skip_special_tokens=False) == "lat=48.25 lon=11.50 [EOS]"
    assert ids[-1] == coords.eos_id


@given(st.integers(-720, 720), st.integers(-360, 360))
def test_round_trip_on_the_grid(coords, longitude, latitude):
    place = [longitude / 4, latitude / 4]
    assert coords.decode(coords.encode([place]).ids).tolist() == [place]


@given(st.floats(-180, 180), st.floats(-90, 90))
def test_nearest_point_of_the_grid(coords, longitude, latitude):
    found = coords.decode(coords.encode([[longitude, latitude]]).ids)[0]
    assert (found - torch.tensor([longitude, latitude], dtype=torch.float64)).abs().max() <= 0.125


@pytest.mark.parametrize("kind", [list, tuple, torch.tensor, lambda places: torch.tensor(places, dtype=torch.float64)])
def test_kinds_of_input(coords, kind):
    assert torch.equal(coords.encode(kind(PLACES)).ids, coords.encode(PLACES).ids)


def test_whole_numbers(coords):
    assert torch.equal(coords.encode(torch.tensor([[11, 48]])).ids, coords.encode([[11.0, 48.0]]).ids)


def test_no_minus_zero(coords):
    assert torch.equal(coords.encode([[-0.1, -0.1]]).ids, coords.encode([[0.0, 0.0]]).ids)


def test_all_words_by_degree(coords):
    assert sorted(coords.latitudes.values()) == [index / 4 for index in range(-360, 361)]
    assert sorted(coords.longitudes.values()) == [index / 4 for index in range(-720, 721)]


@pytest.mark.parametrize("ids", [[5, 3], [], [[3, 3, 3]]])
def test_what_is_no_position_is_nan(coords, ids):
    rows = ids if ids and isinstance(ids[0], list) else [ids]
    assert all(map(math.isnan, coords.decode(rows)[0].tolist()))


def test_half_a_position_is_nan(coords):
    latitude = coords.encode([[11.5, 48.25]]).ids[:, :1]
    assert coords.decode(latitude).isnan().all()


def test_sentinels_between_are_skipped(coords):
    ids = coords.encode([[11.5, 48.25]]).ids[0].tolist()
    assert coords.decode([[5, *ids]]).tolist() == [[11.5, 48.25]]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ([181, 0], "lon 181 is outside -180 to 180"),
        ([0, -90.1], "lat -90.1 is outside -90 to 90"),
        ([float("nan"), 0], "lon nan is outside"),
        ([48.25, 151.5], "are they swapped"),
    ],
)
def test_out_of_range(coords, place, message):
    with pytest.raises(DataError, match=message):
        coords.encode([[0, 0], place])


@pytest.mark.parametrize("places", [[1.0, 2.0], [[1.0, 2.0, 3.0]], torch.zeros(2, 2, 2)])
def test_wrong_shape_of_positions(coords, places):
    with pytest.raises(ConfigError, match=r"\[B, 2\] as \(longitude, latitude\)"):
        coords.encode(places)


def test_position_that_is_not_in_the_vocabulary(tmp_path):
    path = save(tmp_path / "few.json", places=["lat=1.00", "lon=1.00", "lon=2.00"])
    tokenizer = build_coords_tokenizer(path)
    assert tokenizer.decode(tokenizer.encode([[2, 1]]).ids).tolist() == [[2, 1]]
    with pytest.raises(DataError, match=r"'lat=1.00 lon=3.00 \[EOS\]' is not in the vocabulary"):
        tokenizer.encode([[3, 1]])


def test_other_files(tmp_path):
    with pytest.raises(WeightsNotFoundError, match="tokenizer_file"):
        build_coords_tokenizer(tmp_path / "none.json")
    (tmp_path / "text.json").write_text("{}")
    with pytest.raises(WeightsError, match="not a file of the tokenizers package"):
        build_coords_tokenizer(tmp_path / "text.json")
    with pytest.raises(WeightsError, match="has no words such as"):
        build_coords_tokenizer(save(tmp_path / "text_only.json"))
    with pytest.raises(WeightsError, match=r"has no \[EOS\]"):
        CoordsTokenizer(save(tmp_path / "short.json", special=["[PAD]", "[UNK]"]))


def test_vocabulary_is_not_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsNotFoundError) as error:
        build_coords_tokenizer()
    for part in ("config.json", "ibm-esa-geospatial/TerraMind-1.0-Tokenizer-Coords", str(tmp_path), "tokenizer_file"):
        assert part in str(error.value)


def test_vocabulary_names_are_those_of_terratorch(backbones):
    from terratorch.models.backbones.terramind.tokenizer.tokenizer_register import pretrained_weights

    vocabulary = COORDS_VOCABULARIES["terramind_v1"]
    entry = pretrained_weights[vocabulary.name]
    assert (vocabulary.hub_repo, vocabulary.hub_file) == (entry["hf_hub_id"], entry["hf_hub_filename"])
