"""Conversion of coordinates to token ids and back, with a vocabulary file of the `tokenizers` package.

Source: the coordinate tokenizer of TerraMind (arXiv:2504.11171) as registered in TerraTorch.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from terramind_plugin.errors import ConfigError, DataError, WeightsError, WeightsNotFoundError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD_TOKEN, UNKNOWN, START_TOKEN, EOS = "[PAD]", "[UNK]", "[SOS]", "[EOS]"
PUBLISHED_DEGREES = 0.25
"""Resolution of the published vocabulary's grid in degrees."""
PUBLISHED_SENTINELS = 200
_WORD = re.compile(r"(lat|lon)=(-?\d+\.\d+)")
_LIMITS = {"lat": 90.0, "lon": 180.0}


@dataclass(frozen=True)
class Vocabulary:
    """Location of a published vocabulary file."""

    name: str
    hub_repo: str | None
    """Repository on the Hugging Face hub; None for a file that ships with this package."""
    hub_file: str
    """File in that repository, or in the package's folder `shipped`."""


COORDS_VOCABULARIES = {
    "terramind_v1": Vocabulary(
        "terramind_v1_coords_tokenizer", "ibm-esa-geospatial/TerraMind-1.0-Tokenizer-Coords", "config.json"
    ),
    "terramind_sim_nano": Vocabulary("terramind_sim_nano_coords_tokenizer", None, "terramind_sim_nano_coords.json"),
}
"""Vocabularies by family of models."""


class TokenSequence(NamedTuple):
    """Token ids of a batch of positions."""

    ids: Tensor
    """Integers [B, N]."""
    mask: Tensor
    """Boolean [B, N]; True where there is a token."""


class CoordsTokenizer:
    """Tokenizer of longitude and latitude as two words and an end: 'lat=48.25 lon=11.50 [EOS]'.

    Args:
        tokenizer_file: A JSON file as `tokenizers.Tokenizer.save` writes it, or a tokenizer in memory.

    Raises:
        WeightsError: The file is missing or is not a vocabulary of coordinates.
    """

    def __init__(self, tokenizer_file: str | Path | Tokenizer) -> None:
        self.tokenizer: Tokenizer = (
            _read_vocabulary(Path(tokenizer_file).expanduser())
            if isinstance(tokenizer_file, str | Path)
            else tokenizer_file
        )
        self.eos_id = self._token_id(EOS)
        if not self.latitudes or not self.longitudes:
            raise WeightsError(f"{tokenizer_file} has no words such as 'lat=48.25' and 'lon=11.50'.")
        self.steps_per_degree = _steps_per_degree(sorted(self.latitudes.values()))

    @cached_property
    def latitudes(self) -> dict[int, float]:
        """Return the degrees north by token id, for all latitudes of the vocabulary."""
        return self._degrees("lat")

    @cached_property
    def longitudes(self) -> dict[int, float]:
        """Return the degrees east by token id, for all longitudes of the vocabulary."""
        return self._degrees("lon")

    @property
    def sentinels(self) -> list[int]:
        """Return the ids of the tokens '[S_0]', '[S_1]' and so on, ascending."""
        return sorted(number for word, number in self.tokenizer.get_vocab().items() if word.startswith("[S_"))

    def encode(self, coords: Tensor | Sequence[Sequence[float]]) -> TokenSequence:
        """Return token ids [B, N] and their mask, on the device of `coords`.

        Args:
            coords: Positions [B, 2] as (longitude, latitude) in degrees, -180 to 180 and -90 to 90. They are rounded to
                the vocabulary's grid, which is 0.25 degrees for the published one.

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
        """Return positions [B, 2] as (longitude, latitude) in degrees, float64; NaN where ids are not a position.

        Args:
            ids: Token ids [B, N], in any order and among other tokens; the first latitude and the first longitude of a
                row are used.
        """
        positions = []
        for row in ids.tolist() if isinstance(ids, Tensor) else ids:
            longitude = next((self.longitudes[token] for token in row if token in self.longitudes), math.nan)
            latitude = next((self.latitudes[token] for token in row if token in self.latitudes), math.nan)
            known = not math.isnan(longitude + latitude)
            positions.append((longitude, latitude) if known else (math.nan, math.nan))
        return torch.tensor(positions, dtype=torch.float64).reshape(-1, 2)

    def _token_id(self, token: str) -> int:
        number = self.tokenizer.token_to_id(token)
        if number is None:
            raise WeightsError(f"The vocabulary file is not one of TerraMind: it has no {token}.")
        return number

    def _degrees(self, axis: str) -> dict[int, float]:
        matches = {index: _WORD.fullmatch(word) for word, index in self.tokenizer.get_vocab().items()}
        return {index: float(match[2]) for index, match in matches.items() if match and match[1] == axis}

    def _text(self, position: Sequence[float], nearest: Sequence[float]) -> str:
        """Return the text form of one position on the grid."""
        words = []
        for axis, value, on_grid in (("lat", position[1], nearest[1]), ("lon", position[0], nearest[0])):
            if not abs(value) <= _LIMITS[axis]:
                _refuse_position(position[0], position[1])
            word = f"{axis}={on_grid:.2f}"
            if word.endswith("=-0.00") and self.tokenizer.token_to_id(word) is None:
                word = f"{axis}=0.00"
            words.append(word)
        return f"{' '.join(words)} {EOS}"


class CoordsIds(nn.Module):
    """Table of the token ids of positions, stored in checkpoints so that a model needs its vocabulary file only once.

    Args:
        tokenizer: Tokenizer with the vocabulary.
    """

    latitudes: Tensor
    longitudes: Tensor
    end: Tensor

    def __init__(self, tokenizer: CoordsTokenizer) -> None:
        super().__init__()
        with torch.device("cpu"):  # ids come from texts, even if the model is built on the meta device
            latitudes, longitudes, end = _list_ids(tokenizer)
        self.register_buffer("latitudes", latitudes)
        self.register_buffer("longitudes", longitudes)
        self.register_buffer("end", end)

    def tokenize(self, coords: Tensor) -> Tensor:
        """Return token ids [B, N].

        Args:
            coords: Positions [B, 2] as (longitude, latitude) in degrees.

        Raises:
            DataError: A position is out of range or NaN.
        """
        positions = coords.double()
        limits = positions.new_tensor([_LIMITS["lon"], _LIMITS["lat"]])
        if not (positions.abs() <= limits).all():
            wrong = ~(positions.abs() <= limits).all(dim=1)
            _refuse_position(*positions[wrong][0].tolist())
        steps = (len(self.latitudes) - 2) / 180
        grid = (positions * steps).round()
        index = grid.long() + torch.tensor([180, 90], device=grid.device).mul(steps).round().long()
        at_zero = (grid == 0) & grid.signbit()
        longitudes = torch.where(at_zero[:, 0], len(self.longitudes) - 1, index[:, 0])
        latitudes = torch.where(at_zero[:, 1], len(self.latitudes) - 1, index[:, 1])
        words = [self.latitudes[latitudes][:, None], self.longitudes[longitudes][:, None]]
        return torch.cat([*words, self.end.expand(len(coords), -1)], dim=1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load the vocabulary of a checkpoint; TerraTorch's checkpoints have none."""
        for name, buffer in self.named_buffers():
            stored = state_dict.setdefault(f"{prefix}{name}", buffer)
            if stored.shape != buffer.shape and stored.ndim == 1:
                setattr(self, name, torch.empty_like(stored, device=buffer.device))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _list_ids(tokenizer: CoordsTokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """Return the ids of all latitudes, of all longitudes and of the end; -0.0, a word of some vocabularies, is last."""
    steps = round(90 * tokenizer.steps_per_degree)
    degrees = torch.arange(-2 * steps, 2 * steps + 1, dtype=torch.float64) / tokenizer.steps_per_degree
    negative_zero = torch.tensor([-0.0], dtype=torch.float64)
    inner = torch.cat([degrees[steps : 3 * steps + 1], negative_zero])
    outer = torch.cat([degrees, negative_zero])
    by_latitude = tokenizer.encode(torch.stack([torch.zeros_like(inner), inner], dim=1)).ids
    by_longitude = tokenizer.encode(torch.stack([outer, torch.zeros_like(outer)], dim=1)).ids
    return by_latitude[:, 0], by_longitude[:, 1], by_latitude[0, 2:]


def _refuse_position(longitude: float, latitude: float) -> None:
    """Raise a DataError with the reason why a position is not possible."""
    axis, value = ("lon", longitude) if abs(latitude) <= _LIMITS["lat"] else ("lat", latitude)
    swapped = axis == "lat" and abs(longitude) <= 90 < abs(latitude) <= 180
    raise DataError(
        f"{axis} {value:g} is outside -{_LIMITS[axis]:g} to {_LIMITS[axis]:g} degrees in {(longitude, latitude)}."
        + (" Positions are (longitude, latitude): are they swapped?" if swapped else "")
    )


def build_coords_vocabulary(degrees: float = PUBLISHED_DEGREES, sentinels: int = PUBLISHED_SENTINELS) -> Tokenizer:
    """Return a vocabulary of coordinates.

    Special tokens come first, in the order of the published vocabulary, so that the ids that start and end a generated
    sequence are the same; then come latitudes, then longitudes.

    Args:
        degrees: Resolution of the grid; divides 90.
        sentinels: Number of tokens '[S_0]', '[S_1]' and so on; at least 3.

    Raises:
        ConfigError: A number is not possible.
    """
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.pre_tokenizers import WhitespaceSplit

    steps = round(90 / degrees) if degrees > 0 else 0
    if steps < 1 or abs(steps * degrees - 90) > 1e-9 or sentinels < 3:
        raise ConfigError(
            f"A grid of {degrees} degrees must divide 90, and a vocabulary needs 3 sentinels, got {sentinels}."
        )
    special = [PAD_TOKEN, UNKNOWN, START_TOKEN, EOS, *(f"[S_{number}]" for number in range(sentinels))]
    words = [*special, *(f"lat={step * degrees:.2f}" for step in range(-steps, steps + 1))]
    words += [f"lon={step * degrees:.2f}" for step in range(-2 * steps, 2 * steps + 1)]
    tokenizer = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in special])
    return tokenizer


def _read_vocabulary(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    if not path.is_file():
        raise WeightsNotFoundError(f"Vocabulary file not found: {path}. Check tokenizer_file.")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the package raises plain Exception
        raise WeightsError(f"{path} is not a file of the tokenizers package: {error}.") from error


def _steps_per_degree(latitudes: Sequence[float]) -> float:
    """Return the steps per degree of ascending latitudes that form a regular grid, otherwise the published ones."""
    steps = len(latitudes) - 1
    if steps > 0 and all(abs(value + 90 - 180 * n / steps) < 0.01 for n, value in enumerate(latitudes)):
        return steps / 180
    return 1 / PUBLISHED_DEGREES
