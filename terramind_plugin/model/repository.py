"""A model in a folder or a repository of the Hugging Face hub: weights, and a config.json that describes them.

TerraTorch's vLLM plugin reads task and data settings of a fine-tuned model from `pretrained_cfg` in config.json
(terratorch/vllm). The same key is read here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError, WeightsError, WeightsNotFoundError, one_line
from terramind_plugin.model.variants import VARIANTS

ENDINGS = (".safetensors", ".pt", ".ckpt")
"""File name endings of weights, the preferred one first."""
HUB = "hub:"
"""Prefix of a repository on the Hugging Face hub."""
CONFIG_FILE = "config.json"
"""File of a repository that describes its model."""
KEY = "pretrained_cfg"
"""Entry of config.json with the settings of task and data, as TerraTorch's vLLM plugin reads it."""


def is_location(model: str) -> bool:
    """Return whether a model is named by a path or a repository, not by a registry name."""
    return model.startswith(HUB) or "/" in model or model.endswith(ENDINGS) or Path(model).is_dir()


def fetch_weights(model: str) -> Path:
    """Return the file with the weights of a model; the config.json of its repository or folder lies beside it.

    Args:
        model: The path of a file or of a folder with one file of weights, or 'hub:ORG/NAME', which is downloaded if
            needed.

    Raises:
        ConfigError: The repository's name is invalid, or there are several files of weights.
        WeightsNotFoundError: There is no file of weights, or no such repository on this machine or the hub.
    """
    if model.startswith(HUB):
        return _fetch_repository(model.removeprefix(HUB))
    path = Path(model).expanduser()
    if not path.is_dir():
        return path
    names = [one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file()]
    return path / _choose_weights(names, str(path), "Give the path of one of them as --model.")


def read_pretrained_cfg(folder: Path) -> dict[str, Any]:
    """Return the settings of task and data in a folder's config.json; empty if it has none.

    Raises:
        WeightsError: The file cannot be read, or the settings are not a mapping.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not valid JSON: {one_line(error)}. Download it again.") from error
    settings = content.get(KEY) if isinstance(content, Mapping) else None
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        raise WeightsError(f"{path}: {KEY} is a {type(settings).__name__}, expected the settings of task and data.")
    return dict(settings)


def settings_part(settings: Mapping[str, Any], name: str, where: Path) -> dict[str, Any]:
    """Return class_path and init_args of 'model' or 'data' in the settings of a config.json; empty if it is absent.

    Args:
        settings: Result of `read_pretrained_cfg`.
        name: 'model' or 'data'.
        where: Folder of the config.json, for the message.

    Raises:
        WeightsError: The entry has another form.
    """
    part = settings.get(name)
    if part is None:
        return {}
    init_args = part.get("init_args") if isinstance(part, Mapping) else None
    if not isinstance(init_args, Mapping) or not isinstance(part.get("class_path"), str):
        raise WeightsError(
            f"{where / CONFIG_FILE}: {KEY}.{name} must have a class_path and init_args, got {str(part)[:200]}."
        )
    return {"class_path": part["class_path"], "init_args": dict(init_args)}


def settings_beside(weights: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of task and data in the config.json beside weights, in the form of Lightning's checkpoints.

    Returns:
        The arguments of the task, and those of the data module by the name of its class; empty without.

    Raises:
        WeightsError: The config.json cannot be read.
    """
    settings = read_pretrained_cfg(weights.parent)
    task, data = (settings_part(settings, name, weights.parent) for name in ("model", "data"))
    if not task:
        return {}, {}
    kept = {data["class_path"].rpartition(".")[2]: data["init_args"]} if data else {}
    return {"_class_path": task["class_path"], **task["init_args"]}, kept


def _fetch_repository(repo: str) -> Path:
    """Return the file with the weights of a repository on the hub, downloading it and its config.json if needed."""
    from terramind_plugin.model.download import fetch_file

    if repo.count("/") != 1 or not all(repo.split("/")):
        raise ConfigError(f"--model {HUB}{repo} names no repository: write {HUB}ORG/NAME.")
    published = {one.hub_repo: one.hub_file for one in VARIANTS.values()}
    file = published.get(repo)
    if file is None:
        names = _list_files(repo)
        page = f"https://huggingface.co/{repo}"
        file = _choose_weights(names, page, f"Download one of them with hf download {repo} and give its path.")
        beside = (Path(file).parent / CONFIG_FILE).as_posix()
        for name in (beside, CONFIG_FILE):
            if name in names:
                fetch_file(f"{HUB}{repo}", repo, name, "give the path of its folder as --model.")
                break
    return fetch_file(f"{HUB}{repo}", repo, file, "give its path as --model.")


def _list_files(repo: str) -> Sequence[str]:
    """Return the names of the files in a repository, as the hub or the local cache lists them."""
    from huggingface_hub import list_repo_files, snapshot_download

    try:
        return list(list_repo_files(repo))
    except Exception as error:  # from the network and its libraries
        try:
            folder = Path(snapshot_download(repo, local_files_only=True))
        except Exception:
            raise WeightsNotFoundError(
                f"The repository {repo} is not on this machine and could not be listed ({type(error).__name__}). Check "
                f"the name, or download the file on a machine with network and give its path as --model."
            ) from error
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*")]


def _choose_weights(names: Iterable[str], where: str, advice: str) -> str:
    """Return the file with weights among files.

    Raises:
        ConfigError: There are several of the preferred ending.
        WeightsNotFoundError: There is none.
    """
    listed = list(names)
    for ending in ENDINGS:
        found = sorted(name for name in listed if name.endswith(ending))
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigError(f"{where} holds {len(found)} files of weights: {', '.join(found)}. {advice}")
    raise WeightsNotFoundError(f"{where} holds no file of weights ({', '.join(ENDINGS)}).")
