"""A cache of the Hugging Face hub, made by hand: `python -m tests.hub DIR` fills one with random weights."""

from __future__ import annotations

import sys
from pathlib import Path


def cached_file(cache: Path, repository: str, name: str) -> Path:
    """Return the path of a repository's file in a cache, whose folders are made."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    return snapshot / name


def save_published_names(cache: Path) -> None:
    """Fill a cache with random weights under published names: the tiny model, the tokenizers of LULC and coords."""
    import torch
    from terratorch.registry import FULL_MODEL_REGISTRY

    from terramind_plugin.generation.token_generator import plan_targets
    from terramind_plugin.model.encoder_decoder import EncoderDecoder
    from terramind_plugin.model.modalities import MODALITIES
    from terramind_plugin.model.planning import plan_inputs
    from terramind_plugin.model.variants import VARIANTS
    from terramind_plugin.tokenizers.coordinates import COORDS_VOCABULARIES
    from terramind_plugin.tokenizers.variants import TOKENIZERS

    def scatter(state: dict) -> dict:
        """Move weights off the values that a mistake could hide behind."""
        return {name: x + 0.02 * torch.randn_like(x) if x.is_floating_point() else x for name, x in state.items()}

    tiny = VARIANTS["terramind_v1_tiny"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = plan_inputs([name for name, modality in MODALITIES.items() if modality.patch_key], tokens=True)
        model = EncoderDecoder(tiny, inputs, list(plan_targets(["LULC"]).values()), img_size=(224, 224))
        torch.save(scatter(model.state_dict()), cached_file(cache, tiny.hub_repo, tiny.hub_file))
        variant = TOKENIZERS["terramind_v1_tokenizer_lulc"]
        theirs = FULL_MODEL_REGISTRY.build(f"terratorch_{variant.name}")
        torch.save(scatter(theirs.state_dict()), cached_file(cache, variant.hub_repo, variant.hub_file))
    coords = COORDS_VOCABULARIES["terramind_v1"]
    save_vocabulary(cached_file(cache, coords.hub_repo, coords.hub_file))


def save_vocabulary(path: Path) -> None:
    """Write a vocabulary of coordinates with the words of the published one."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", "[S_0]", "[S_1]"]
    for axis, limit in (("lat", 90), ("lon", 180)):
        words += [f"{axis}={index / 4:.2f}" for index in range(-4 * limit, 4 * limit + 1)]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    made.add_special_tokens(words[:6])
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    made.save(str(path))


if __name__ == "__main__":
    save_published_names(Path(sys.argv[1]))
