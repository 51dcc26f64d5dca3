"""Comparison of published weights in TerraTorch's own models and in this package's: results must be the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from terramind_plugin.builders import build_backbone, build_coords_tokenizer, build_generator, build_image_tokenizer
from terramind_plugin.errors import ConfigError, DataError, WeightsError, one_line, suggest
from terramind_plugin.model.modalities import MODALITIES, Modality, find
from terramind_plugin.model.variants import VARIANTS, Variant
from terramind_plugin.raster.chips import read_chip
from terramind_plugin.tokenizers.variants import tokenizers_of

PATCH = VARIANTS["terramind_v1_base"].patch_size
"""Patch size of the published models, in pixels; heights and widths are multiples of it."""
SIDE = 224
"""Maximum height and width of the input in pixels; the published models were trained with this size."""
SEED = 0
"""Seed of random inputs and of the decoders' noise."""
DENOISING_STEPS = 2
"""Denoising steps of a decoded image. Few are enough, because one step already uses all weights."""
ROUNDING = 1e-4
"""Tolerated difference, as a share of the largest value: another order of additions may cause it."""
FLIPPED = 1e-3
"""Tolerated share of different ids: a value between two codes can be rounded either way."""
CLASSES = "LULC"
"""Generated modality, chosen because its decoder draws no random numbers."""
COORDS = "coords"
POSITIONS = ((11.5, 48.25), (-180.0, -90.0), (151.25, -33.75))
"""Positions whose token ids are compared: longitude and latitude in degrees."""


@dataclass(frozen=True)
class Agreement:
    """Difference between the results of both packages."""

    model: str
    what: str
    data: str
    """Name of the input file, or 'random'."""
    difference: float
    """Largest difference as a share of the largest value, or the share of ids that differ."""
    tolerance: float

    @property
    def same(self) -> bool:
        """Return whether both packages give the same numbers."""
        return self.difference <= self.tolerance  # NaN is not


@dataclass(frozen=True)
class ModelInput:
    """An input of one modality."""

    name: str
    """Name of the file, or 'random'."""
    values: Tensor
    """Standardised values [1, bands, H, W] or class ids [1, H, W]."""


def verify(
    names: Sequence[str],
    data: Path | None = None,
    tokenizers: Sequence[str] | None = None,
    on_step: Callable[[str], None] = lambda text: None,
) -> list[Agreement]:
    """Return how far this package's results with the published weights differ from TerraTorch's.

    Only one pair of models is in memory at a time.

    Args:
        names: Published models, e.g. 'terramind_v1_base'.
        data: Folder with a folder of GeoTIFFs for each modality, e.g. S2L2A/; the input is the first chip that all
            folders have. None for seeded random numbers.
        tokenizers: Modalities whose tokenizers are compared, 'coords' included; None for all. One land cover map is
            generated if LULC is among them.
        on_step: Called with the name of each model before it is compared.

    Raises:
        ConfigError: A name is unknown.
        DataError: The folder holds no chip.
        WeightsError: Weights are not on this machine, or one of the packages cannot load them.
    """
    variants = [_find_variant(name) for name in names]
    wanted = _find_tokenizers(tokenizers)
    samples = _random_samples() if data is None else {**_random_samples(), **_read_samples(data)}
    pixels = [name for name, modality in MODALITIES.items() if modality.patch_key is not None]
    if data is not None:
        pixels = [name for name in pixels if samples[name].name != "random"]
    results = []
    with _reproducible(), torch.no_grad():
        for variant in variants:
            on_step(variant.name)
            results.append(_compare_features(variant, {name: samples[name] for name in pixels}))
            if CLASSES in wanted:
                on_step(f"{variant.name}_generate")
                results.append(_compare_generation(variant, pixels[0], samples[pixels[0]]))
        for name in wanted:
            tokenizer = f"terramind_v1_tokenizer_{name.lower()}" if name != COORDS else "terramind_v1_coords_tokenizer"
            on_step(tokenizer)
            results += [_compare_coords(tokenizer)] if name == COORDS else _compare_tokenizers(name, samples[name])
    return results


def _find_variant(name: str) -> Variant:
    published = {name: variant for name, variant in VARIANTS.items() if variant.hub_repo is not None}
    if name not in published:
        raise ConfigError(
            f"'{name}' is not a published model.{suggest(name, published)} Known: {', '.join(published)}."
        )
    return published[name]


def _find_tokenizers(names: Sequence[str] | None) -> list[str]:
    known = [*tokenizers_of(), COORDS]
    for name in names or ():
        if name not in known:
            raise ConfigError(f"'{name}' has no tokenizer.{suggest(name, known)} Known: {', '.join(known)}.")
    return known if names is None else list(dict.fromkeys(names))


@contextmanager
def _reproducible() -> Iterator[None]:
    """Compute float32 products at full precision, and restore the global random state at the end."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # TerraTorch lowers it
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def _random_samples() -> dict[str, ModelInput]:
    """Return a seeded random input for each raster modality."""
    random = torch.Generator().manual_seed(SEED)
    samples = {}
    for name, modality in MODALITIES.items():
        if modality.kind == "classes":
            values = torch.randint(len(modality.class_names), (1, SIDE, SIDE), generator=random)
        elif modality.kind == "image":
            values = torch.randn(1, len(modality.bands), SIDE, SIDE, generator=random)
        else:
            continue
        samples[name] = ModelInput("random", values)
    return samples


def _read_samples(folder: Path) -> dict[str, ModelInput]:
    """Return the first chip that all folders of modalities have.

    Raises:
        DataError: There is no such chip, or a file cannot be used.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder}. Check --data.")
    found = {path: find(path.name) for path in sorted(folder.iterdir()) if path.is_dir()}
    folders = {modality: path for path, modality in found.items() if modality is not None and modality.bands}
    chips = {modality: {path.stem: path for path in sorted(one.glob("*.tif"))} for modality, one in folders.items()}
    common = set.intersection(*(set(files) for files in chips.values())) if chips else set()
    if not common or not any(modality.patch_key is not None for modality in chips):
        raise DataError(
            f"{folder} holds no chip: expected a folder for each modality, e.g. S2L2A/ and S1GRD/, whose GeoTIFFs "
            "have the same names."
        )
    name = min(common)
    return {modality.name: _read_sample(files[name], modality) for modality, files in chips.items()}


def _read_sample(path: Path, modality: Modality) -> ModelInput:
    chip = read_chip(path, modality)
    height, width = (min(side, SIDE) // PATCH * PATCH for side in chip.size)
    if not height or not width:
        raise DataError(f"{path} has {chip.size[0]} x {chip.size[1]} pixels, expected at least {PATCH} x {PATCH}.")
    values = chip.values[:, :height, :width]
    if modality.kind == "classes":
        return ModelInput(path.name, torch.from_numpy(np.ascontiguousarray(values)))
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (modality.mean, modality.std))
    return ModelInput(path.name, ((torch.from_numpy(np.ascontiguousarray(values)).float() - mean) / std)[None])


def _compare_features(variant: Variant, samples: Mapping[str, ModelInput]) -> Agreement:
    x = {name: sample.values for name, sample in samples.items()}
    got = build_backbone(variant.name, list(x), pretrained=True).eval()(dict(x))[-1]
    want = _theirs("backbone", variant.name, modalities=list(x))(dict(x))[-1]
    data = next(iter(samples.values())).name
    return Agreement(variant.name, f"features of {', '.join(x)}", data, _distance(got, want), ROUNDING)


def _compare_generation(variant: Variant, source: str, sample: ModelInput) -> Agreement:
    """Compare the most likely land cover of one input; one step at temperature 0 draws no random numbers."""
    settings: dict[str, Any] = {"modalities": [source], "output_modalities": [CLASSES], "temps": 0.0}
    got = build_generator(variant.name, **settings, pretrained=True)({source: sample.values})[CLASSES].argmax(dim=1)
    theirs = _theirs("full model", f"{variant.name}_generate", **settings)
    want = theirs({source: sample.values})[CLASSES].argmax(dim=1)
    return Agreement(f"{variant.name}_generate", f"{source} to {CLASSES}", sample.name, _unlike(got, want), FLIPPED)


def _compare_tokenizers(name: str, sample: ModelInput) -> list[Agreement]:
    """Compare token ids, and the images decoded from the same ids and noise."""
    tokenizer = tokenizers_of()[name].name
    ours = build_image_tokenizer(tokenizer, pretrained=True)
    theirs = _theirs("full model", tokenizer)
    got, want = ours.tokenize(sample.values), theirs.encode(sample.values)[-1]
    size = (want.shape[-2] * ours.variant.patch_size, want.shape[-1] * ours.variant.patch_size)
    if ours.variant.modality.kind == "classes":
        images = ours.decode_tokens(want), theirs.decode_tokens(want)
    else:
        noise = torch.randn(1, ours.channels, *size, generator=torch.Generator().manual_seed(SEED))
        random = torch.Generator().manual_seed(SEED)
        images = (
            ours.decode_tokens(want, timesteps=DENOISING_STEPS, noise=noise),
            theirs.decode_tokens(want, timesteps=DENOISING_STEPS, generator=random, verbose=False),
        )
    return [
        Agreement(tokenizer, "token ids", sample.name, _unlike(got, want), FLIPPED),
        Agreement(tokenizer, "decoded image", sample.name, _distance(*images), ROUNDING),
    ]


def _compare_coords(name: str) -> Agreement:
    from terramind_plugin.data.terratorch_internals import tokenizer_register

    got = build_coords_tokenizer().encode(POSITIONS).ids
    theirs = _load_theirs(name, lambda: getattr(tokenizer_register, name)(pretrained=True))  # in no registry
    want = theirs.encode(torch.tensor(POSITIONS))["tensor"]
    return Agreement(name, "token ids", f"{len(POSITIONS)} positions", _unlike(got, want), 0.0)


def _theirs(registry: str, name: str, **arguments: Any) -> Any:
    """Return a model of TerraTorch's own, with its published weights, in evaluation mode."""
    from terratorch.registry import BACKBONE_REGISTRY, FULL_MODEL_REGISTRY

    torch.set_float32_matmul_precision("highest")  # the import lowers it
    models = BACKBONE_REGISTRY if registry == "backbone" else FULL_MODEL_REGISTRY
    return _load_theirs(name, lambda: models.build(f"terratorch_{name}", pretrained=True, **arguments).eval())


def _load_theirs(name: str, build: Callable[[], Any]) -> Any:
    """Return a model of TerraTorch.

    Raises:
        WeightsError: TerraTorch cannot load the weights.
    """
    try:
        return build()
    except Exception as error:  # any error: this package has just loaded the same weights
        raise WeightsError(f"TerraTorch cannot load {name}: {type(error).__name__}: {one_line(error)}") from error


def _distance(got: Tensor, want: Tensor) -> float:
    """Return the largest difference as a share of the largest value."""
    if got.shape != want.shape:
        return float("inf")
    return float((got - want).abs().max() / want.abs().max().clamp(min=1e-6))


def _unlike(got: Tensor, want: Tensor) -> float:
    """Return the share of ids that differ."""
    return float((got != want).float().mean()) if got.shape == want.shape else 1.0
