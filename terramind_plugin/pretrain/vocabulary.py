"""Vocabularies of coordinates on a grid of one's own."""

from __future__ import annotations

from pathlib import Path

from terramind_plugin.files import write_text
from terramind_plugin.tokenizers.coordinates import build_coords_vocabulary

NANO_DEGREES = 5
"""Grid of terramind_sim_nano."""
NANO_SENTINELS = 12


def write_coords_vocabulary(path: str | Path, degrees: float, sentinels: int = 200) -> int:
    """Write what `build_coords_vocabulary` returns to a file and return its number of token ids.

    Args:
        path: File to write; an existing one is replaced.
        degrees: Resolution of the grid; divides 90.
        sentinels: Number of tokens '[S_0]', '[S_1]' and so on; at least 3.

    Raises:
        ConfigError: A number is not possible.
    """
    tokenizer = build_coords_vocabulary(degrees, sentinels)
    write_text(Path(path), tokenizer.to_str(pretty=True))
    return tokenizer.get_vocab_size()
