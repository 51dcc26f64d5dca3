"""Coordinates and captions: from text to token ids and back, with a vocabulary file of the `tokenizers` package.

Source: the text tokenizers of TerraMind (arXiv:2504.11171) as registered in TerraTorch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from terramind_plugin.errors import ConfigError, DataError, WeightsError, WeightsNotFoundError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

EOS, PAD, UNKNOWN, SENTINEL = "[EOS]", "[PAD]", "[UNK]", "[S_1]"
PUBLISHED_STEPS_PER_DEGREE = 4.0
_WORD = re.compile(r"(lat|lon)=(-?\d+\.\d+)")
_LIMITS = {"lat": 90.0, "lon": 180.0}


@dataclass(frozen=True)
class Vocabulary:
    """Where a published vocabulary file is."""

    name: str
    hub_repo: str | None
    """Repository on the Hugging Face hub; None for a file that ships with this package."""
    hub_file: str
    """File in that repository, or in the package's folder `shipped`."""


COORDS_VOCABULARY = Vocabulary(
    "terramind_v1_coords_tokenizer", "ibm-esa-geospatial/TerraMind-1.0-Tokenizer-Coords", "config.json"
)
COORDS_VOCABULARIES = {
    "terramind_v1": COORDS_VOCABULARY,
    "terramind_sim_nano": Vocabulary("terramind_sim_nano_coords_tokenizer", None, "terramind_sim_nano_coords.json"),
}
"""By family of models."""
CAPTION_VOCABULARY = Vocabulary(
    "terramind_v01_caption_tokenizer", "FAST-EO/TerraMind-v0.1-Tokenizer-Text", "config.json"
)


class TokenSequence(NamedTuple):
    """Token ids of a batch of texts."""

    ids: Tensor
    """Integers [B, N], padded at the end."""
    mask: Tensor
    """Boolean [B, N]; True where there is a token, False where there is padding."""


def read_vocabulary(path: str | Path) -> Tokenizer:
    """Return the tokenizer in a file.

    Args:
        path: A JSON file as `tokenizers.Tokenizer.save` writes it.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: The file is no tokenizer.
    """
    from tokenizers import Tokenizer

    path = Path(path).expanduser()
    if not path.is_file():
        raise WeightsNotFoundError(f"Vocabulary file not found: {path}. Check tokenizer_file.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise WeightsError(f"{path} is not a file of the tokenizers package: {error}.") from error


def _token_id(tokenizer: Tokenizer, token: str) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise WeightsError(f"The vocabulary file is not one of TerraMind: it has no {token}.")
    return number


class CoordsTokenizer:
    """Longitude and latitude as two words and an end: 'lat=48.25 lon=11.50 [EOS]'.

    Args:
        tokenizer_file: The vocabulary, see `read_vocabulary`, or one that was read or built before.

    Raises:
        WeightsError: The file is missing or is no vocabulary of coordinates.
    """

    def __init__(self, tokenizer_file: str | Path | Tokenizer) -> None:
        self.tokenizer: Tokenizer = (
            read_vocabulary(tokenizer_file) if isinstance(tokenizer_file, str | Path) else tokenizer_file
        )
        self.eos_id = _token_id(self.tokenizer, EOS)
        self.pad_id = _token_id(self.tokenizer, PAD)
        if not self.latitudes or not self.longitudes:
            raise WeightsError(f"{tokenizer_file} has no words such as 'lat=48.25' and 'lon=11.50'.")
        self.steps_per_degree = _steps_per_degree(sorted(self.latitudes.values()))

    @cached_property
    def latitudes(self) -> dict[int, float]:
        """Degrees north by token id, for all latitudes of the vocabulary."""
        return self._degrees("lat")

    @cached_property
    def longitudes(self) -> dict[int, float]:
        """Degrees east by token id, for all longitudes of the vocabulary."""
        return self._degrees("lon")

    def encode(self, coords: Tensor | Sequence[Sequence[float]]) -> TokenSequence:
        """Return token ids [B, N] and their mask, on the device of `coords`.

        Args:
            coords: Positions [B, 2] as (longitude, latitude) in degrees, -180 to 180 and -90 to 90; the nearest point
                of the vocabulary's grid is taken: 0.25 degrees for the published one.

        Raises:
            DataError: A position is out of range, NaN or not in the vocabulary.
            ConfigError: The shape is not [B, 2].
        """
        positions = torch.as_tensor(coords)
        if positions.dim() != 2 or positions.shape[1] != 2:
            raise ConfigError(f"Coordinates have shape [B, 2] as (longitude, latitude), got {list(positions.shape)}.")
        grid = (positions.double() * self.steps_per_degree).round() / self.steps_per_degree
        texts = [self._text(*pair) for pair in zip(positions.tolist(), grid.tolist(), strict=True)]
        rows = [row.ids for row in self.tokenizer.encode_batch(texts, add_special_tokens=True)]
        unknown = self.tokenizer.token_to_id(UNKNOWN)
        for text, row in zip(texts, rows, strict=True):
            if unknown in row or len(row) != len(rows[0]):
                raise DataError(f"'{text}' is not in the vocabulary. Is tokenizer_file the one for coordinates?")
        ids = torch.tensor(rows, dtype=torch.long, device=positions.device).reshape(len(rows), -1)
        return TokenSequence(ids, torch.ones_like(ids, dtype=torch.bool))

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> Tensor:
        """Return positions [B, 2] as (longitude, latitude) in degrees, float64; NaN where ids are no position.

        Args:
            ids: Token ids [B, N], in any order and with any other tokens between; a row's first latitude and first
                longitude count.
        """
        rows = ids.tolist() if isinstance(ids, Tensor) else ids
        positions = []
        for row in rows:
            longitude = next((self.longitudes[token] for token in row if token in self.longitudes), float("nan"))
            latitude = next((self.latitudes[token] for token in row if token in self.latitudes), float("nan"))
            whole = longitude == longitude and latitude == latitude
            positions.append((longitude, latitude) if whole else (float("nan"), float("nan")))
        return torch.tensor(positions, dtype=torch.float64).reshape(-1, 2)

    def _degrees(self, axis: str) -> dict[int, float]:
        matches = {index: _WORD.fullmatch(word) for word, index in self.tokenizer.get_vocab().items()}
        return {index: float(match[2]) for index, match in matches.items() if match and match[1] == axis}

    def _text(self, given: Sequence[float], nearest: Sequence[float]) -> str:
        """Return the text form of one position on the grid."""
        words = []
        for axis, value, on_grid in (("lat", given[1], nearest[1]), ("lon", given[0], nearest[0])):
            if not abs(value) <= _LIMITS[axis]:
                swapped = axis == "lat" and abs(given[0]) <= 90 < abs(value) <= 180
                raise DataError(
                    f"{axis} {value:g} is outside -{_LIMITS[axis]:g} to {_LIMITS[axis]:g} degrees in "
                    f"{tuple(given)}." + (" Positions are (longitude, latitude): are they swapped?" if swapped else "")
                )
            word = f"{axis}={on_grid:.2f}"
            if word.endswith("=-0.00") and self.tokenizer.token_to_id(word) is None:
                word = f"{axis}=0.00"
            words.append(word)
        return f"{' '.join(words)} {EOS}"


def _steps_per_degree(latitudes: Sequence[float]) -> float:
    """Return the resolution of a vocabulary whose latitudes, ascending, are a whole grid; else the published one's."""
    steps = len(latitudes) - 1
    if steps > 0 and all(abs(value + 90 - 180 * n / steps) < 0.01 for n, value in enumerate(latitudes)):
        return steps / 180
    return PUBLISHED_STEPS_PER_DEGREE


class CaptionTokenizer:
    """English text as tokens, for TerraMind 0.1; the weights of version 1 know no captions.

    Args:
        tokenizer_file: The vocabulary, see `read_vocabulary`.

    Raises:
        WeightsError: The file is missing or is no vocabulary.
    """

    def __init__(self, tokenizer_file: str | Path) -> None:
        self.tokenizer = read_vocabulary(tokenizer_file)
        self.eos_id = _token_id(self.tokenizer, EOS)
        self.pad_id = _token_id(self.tokenizer, PAD)

    def encode(self, texts: Sequence[str], device: torch.device | str | None = None) -> TokenSequence:
        """Return token ids [B, N] and their mask: the text, [S_1], [EOS], and padding behind.

        Args:
            texts: One caption for each sample.
            device: Where the tensors are made.

        Raises:
            ConfigError: A single text came without a list around it, or there is none.
        """
        if isinstance(texts, str) or not texts:
            raise ConfigError(f"Captions are a list with one text for each sample, got {texts!r}.")
        rows = self.tokenizer.encode_batch([f"{text} {SENTINEL}" for text in texts], add_special_tokens=True)
        ids = [torch.tensor([*row.ids, self.eos_id], device=device) for row in rows]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self.pad_id)
        lengths = torch.tensor([len(row) for row in ids], device=device)
        return TokenSequence(padded, torch.arange(padded.shape[1], device=device) < lengths[:, None])

    def decode(self, ids: Tensor | Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of token ids [B, N], each up to its end, without special tokens, sentences capitalised."""
        texts = []
        for row in ids.tolist() if isinstance(ids, Tensor) else ids:
            end = row.index(self.eos_id) if self.eos_id in row else len(row)
            text = self.tokenizer.decode(list(row[:end]), skip_special_tokens=True)
            texts.append(re.sub(r"(^|[.!?]\s+)(\w)", lambda found: found[1] + found[2].upper(), text))
        return texts


def refuse_captions(weights: str) -> None:
    """Raise where captions are asked of a model that was not trained with them.

    Args:
        weights: Name of the model.

    Raises:
        ConfigError: The name is not one of version 0.1.
    """
    if not weights.startswith("terramind_v01"):
        raise ConfigError(
            f"Captions are not supported by v1 weights: {weights} was trained without text. Use coords, an image "
            "modality, or TerraMind 0.1 (terramind_v01_base_generate, TerraTorch's own)."
        )
