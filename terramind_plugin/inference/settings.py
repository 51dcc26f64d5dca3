"""The weights and settings of a model in `reconstruct`, `generate` and `embed`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from terramind_plugin._version import __version__
from terramind_plugin.errors import ConfigError, WeightsNotFoundError, check_seed
from terramind_plugin.model.variants import Variant
from terramind_plugin.tokenizers.diffusion import TRAINING_STEPS

WEIGHTS_SEED = 0
"""Seed of random weights. It is fixed, so that runs can be repeated."""


@dataclass(frozen=True)
class Settings:
    """Weights and sampling of a model."""

    pretrained: bool = True
    """Whether to load the published weights."""
    ckpt_path: Path | None = None
    """File with weights; it takes precedence over the published weights."""
    steps: int = 10
    """Number of denoising steps of an image."""
    seed: int = 0
    """Seed of the first sample; sample i has seed + i."""
    tokenizer_ckpt_paths: Mapping[str, Path] = field(default_factory=dict)
    """Files with tokenizer weights, by modality; for generation."""
    tokenizer_file: Path | None = None
    """Vocabulary of coordinates; for generation."""

    def check(self) -> None:
        """Raise a ConfigError if a number is not possible, before slow work begins."""
        if not 1 <= self.steps <= TRAINING_STEPS:
            raise ConfigError(f"steps must be from 1 to {TRAINING_STEPS}, got {self.steps}.")
        check_seed(self.seed)

    def describe(self, model: str, variant: Variant) -> dict[str, str]:
        """Return the tags of results.

        Args:
            model: Name of the model.
            variant: Architecture, which tells the origin of the weights.
        """
        own = "published" if variant.hub_repo else "shipped with terramind_plugin, trained on simulated worlds"
        weights = own if self.pretrained else f"random, from seed {WEIGHTS_SEED}"
        tags = {"model": model, "weights": weights if self.ckpt_path is None else _hash_file(self.ckpt_path)}
        if self.tokenizer_ckpt_paths:
            files = {name: _hash_file(path) for name, path in self.tokenizer_ckpt_paths.items()}
            tags["tokenizer_weights"] = "; ".join(f"{name}: {text}" for name, text in files.items())
        return tags | {"seed": str(self.seed), "steps": str(self.steps), "terramind_plugin_version": __version__}


@contextmanager
def fixed_random_weights() -> Iterator[None]:
    """Draw the same random weights in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(WEIGHTS_SEED)
        yield


@contextmanager
def loading_weights() -> Iterator[None]:
    """Draw the same random weights in every run, and name the command's options if weights are missing."""
    try:
        with fixed_random_weights():
            yield
    except WeightsNotFoundError as error:
        raise WeightsNotFoundError(
            f"{error} In this command: --ckpt_path FILE, --model terramind_sim_nano for the small model that ships, "
            "or --pretrained false to try it with random weights."
        ) from error


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return f"{Path(path).name} (sha256 {hashlib.file_digest(file, 'sha256').hexdigest()[:16]})"
