"""Vocabularies of coordinates on a grid of any resolution."""

from __future__ import annotations

from typing import TYPE_CHECKING

from terramind_plugin.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PUBLISHED_DEGREES = 0.25
"""Resolution of the published vocabulary's grid."""
PUBLISHED_SENTINELS = 200


def build_coords_vocabulary(degrees: float = PUBLISHED_DEGREES, sentinels: int = PUBLISHED_SENTINELS) -> Tokenizer:
    """Return a vocabulary of coordinates.

    Special tokens come first and in the order of the published vocabulary, so that the ids that begin and end a
    generated sequence are the same; then latitudes, then longitudes.

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
    special = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", *(f"[S_{number}]" for number in range(sentinels))]
    words = [*special, *(f"lat={step * degrees:.2f}" for step in range(-steps, steps + 1))]
    words += [f"lon={step * degrees:.2f}" for step in range(-2 * steps, 2 * steps + 1)]
    tokenizer = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(word, normalized=False, special=True) for word in special])
    return tokenizer
