"""The model that a user names: by its registry name, by a file of weights, or by a repository on the hub."""

from __future__ import annotations

from pathlib import Path

from terramind_plugin.errors import ConfigError, WeightsError, WeightsNotFoundError, suggest
from terramind_plugin.model.variants import SIZES, VARIANTS, Variant

ENDINGS = (".safetensors", ".pt", ".ckpt")
"""Endings of files with weights, the preferred one first."""
HUB = "hub:"
"""Prefix of a repository on the Hugging Face hub."""


def look_up_model(model: str, ckpt_path: Path | None = None) -> tuple[Variant, Path | None]:
    """Return the architecture that a user names, and the file with its weights; None for the published ones.

    Args:
        model: A registry name such as 'terramind_v1_base', the path of a checkpoint, or 'hub:ORG/NAME'.
        ckpt_path: Weights beside a registry name.

    Raises:
        ConfigError: There is no such model, or weights are named twice.
        WeightsNotFoundError: There is no such file, or no such repository on this machine and the hub.
        WeightsError: The file holds no TerraMind, or one of no known size.
    """
    if model in VARIANTS:
        return VARIANTS[model], ckpt_path
    if model.startswith(HUB):
        path = _fetch_repository(model.removeprefix(HUB))
    elif "/" in model or model.endswith(ENDINGS):
        path = Path(model).expanduser()
    else:
        near = f" Did you mean '{SIZES[model]}'?" if model in SIZES else suggest(model, VARIANTS)
        raise ConfigError(
            f"There is no model '{model}'.{near} --model takes one of {', '.join(VARIANTS)}, the "
            f"path of a checkpoint, or {HUB}ORG/NAME."
        )
    if ckpt_path is not None:
        raise ConfigError(f"Both --model {model} and --ckpt_path {ckpt_path} name weights. Give one of them.")
    return read_variant(path), path


def read_variant(path: Path) -> Variant:
    """Return the architecture of the weights in a file.

    The settings of a Lightning checkpoint name it. Without settings the shapes of the encoder's weights tell it.

    Args:
        path: As for `terramind_plugin.model.weights.read_checkpoint`.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: The file holds no TerraMind encoder, or one of no known size.
    """
    from terramind_plugin.model.checkpoints import model_args_of, read_file
    from terramind_plugin.model.weights import read_checkpoint

    content, _ = read_file(path)
    named = str(model_args_of(content, path).get("backbone")).removeprefix("terratorch_").removesuffix("_tim")
    if named in VARIANTS:
        return VARIANTS[named]
    tensors = read_checkpoint(path).tensors
    blocks = {name.split(".")[1] for name in tensors if name.startswith("encoder.")}
    norm = tensors.get("encoder_norm.weight")
    dim = 0 if norm is None else norm.numel()
    for variant in VARIANTS.values():
        if (variant.dim, variant.depth) == (dim, len(blocks)):
            return variant
    raise WeightsError(
        f"{path} holds an encoder of {len(blocks)} blocks and width {dim}, which is no known size: "
        + ", ".join(f"{one.name} has {one.depth} and {one.dim}" for one in VARIANTS.values())
        + "."
    )


def _fetch_repository(repo: str) -> Path:
    """Return the file with the weights of a repository on the hub, downloading it if needed."""
    from terramind_plugin.model.weights import fetch_file

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ConfigError(f"--model {HUB}{repo} names no repository: write {HUB}ORG/NAME.")
    published = {one.hub_repo: one.hub_file for one in VARIANTS.values()}
    file = published.get(repo) or _weights_file(repo)
    return fetch_file(f"{HUB}{repo}", repo, file, "give its path as --model.")


def _weights_file(repo: str) -> str:
    """Return the name of the one file with weights in a repository, as the hub or the local cache lists it."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        names = list_repo_files(repo)
    except Exception as error:  # from the network and its libraries
        try:
            folder = Path(snapshot_download(repo, local_files_only=True))
        except Exception:
            raise WeightsNotFoundError(
                f"The repository {repo} is not on this machine and could not be listed ({type(error).__name__}). Check "
                f"the name, or download the file on a machine with network and give its path as --model."
            ) from error
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    for ending in ENDINGS:
        found = [name for name in names if name.endswith(ending)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(
                f"https://huggingface.co/{repo} holds {len(found)} files of weights: {', '.join(sorted(found))}. "
                f"Download one of them, hf download {repo} {found[0]}, and give its path as --model."
            )
    raise WeightsNotFoundError(f"https://huggingface.co/{repo} holds no file of weights ({', '.join(ENDINGS)}).")
