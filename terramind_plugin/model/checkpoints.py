"""Checkpoint files: read, or refused with a reason if they are damaged or are not checkpoints.

No code in a file is executed. A file enters a model only if each of its tensors can be a weight: dense, with values,
and finite.
"""

from __future__ import annotations

import hashlib
import stat
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from terramind_plugin.errors import WeightsError, WeightsNotFoundError, one_line
from terramind_plugin.model.repository import settings_beside

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types of stored weights."""
MAY_BE_UNSET = "missing_mod_token"
"""End of the name of the only weight that may be NaN: TerraTorch leaves it unset if no modality was missing."""
BATCH_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""Ends of the names of buffers that are learnt in training."""
SETTINGS = "hyper_parameters"
"""Entry of a Lightning checkpoint with the settings of its task."""
OF_TERRATORCH = ("use_temporal", "temporal_")
"""Prefixes of backbone arguments that TerraTorch itself reads."""
OF_CACHES = ("feature_cache", "tim_cache", "feature_memo", "tim_memo")
"""Prefixes of backbone arguments about caches, with their former names."""
AGAIN = "Copy or download it again."
LONGEST = 200
"""Maximum number of characters of a foreign name or message that are shown."""
CHUNK = 2**20
"""Number of bytes that are read at once to verify checksums."""


def read_file(path: str | Path) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Return the content of a checkpoint, and its weights by name.

    A file without settings takes those of the config.json that lies beside it, as in a repository on the hub.

    Args:
        path: A .pt, .ckpt or .safetensors file; '~' stands for the home folder. Weights are the tensors in its
            'state_dict', else in its 'model', else on the top level.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: The file cannot be read, is damaged, or a weight is sparse, quantised, without values or not
            finite.
    """
    path = Path(path).expanduser()
    content = _load(path)
    tensors = _find_weights(content, path)
    if SETTINGS not in content:
        settings, data = settings_beside(path)
        content = {**content, SETTINGS: settings, **data} if settings else content
    for name, value in tensors.items():
        _check_tensor(name, value, path)
    _check_finite(tensors, path)
    return content, tensors


def settings_of(content: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """Return the settings of the task in a checkpoint, or in the config.json beside it; empty if there are none.

    Raises:
        WeightsError: They are not a mapping from names to values.
    """
    return _mapping(content.get(SETTINGS), SETTINGS, path)


def model_args_of(content: Mapping[str, Any], path: str | Path) -> Mapping[str, Any]:
    """Return the `model_args` in a Lightning checkpoint; empty if it has none.

    Raises:
        WeightsError: They, or a part of them that is a mapping in every configuration, are not mappings.
    """
    arguments = _mapping(settings_of(content, path).get("model_args"), "model_args", path)
    for part in ("backbone_kwargs", "decoder_kwargs", "head_kwargs"):
        _mapping(arguments.get(part), part, path)
    return arguments


def backbone_settings(model_args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a task's backbone without the prefix 'backbone_', and without those of caches."""
    settings = model_args.get("backbone_kwargs") or {
        key.removeprefix("backbone_"): value for key, value in model_args.items() if key.startswith("backbone_")
    }
    return {key: value for key, value in settings.items() if not key.startswith(OF_CACHES)}


def load_into(module: Any, tensors: Mapping[str, Tensor], path: str | Path, what: str, *, strict: bool = True) -> None:
    """Copy weights into a module.

    Args:
        module: Module that gets the weights.
        tensors: Weights by name.
        path: File of the weights, for messages.
        what: Description of the module, for messages.
        strict: Whether the names must be exactly the module's.

    Raises:
        WeightsError: They do not fit.
    """
    check_types(module, tensors, path)
    try:
        module.load_state_dict(dict(tensors), strict=strict)
    except WeightsError:
        raise
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise WeightsError(f"{path} does not fit {what}: {shorten(error, 10 * LONGEST)}") from error


def with_tables(module: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add the tables that a module makes for itself, e.g. of positions, to weights that lack them.

    Args:
        module: Module that the weights are for.
        tensors: Weights by the module's names. Statistics of batch norms are learnt, so they are not tables.
    """
    stored = set(module.state_dict())
    tables = {name: x for name, x in module.named_buffers() if name in stored and not name.endswith(BATCH_STATISTICS)}
    return {**tables, **tensors}


def check_types(module: Any, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Check that a file has floating-point numbers for floating-point weights, and integers for integer weights.

    Raises:
        WeightsError: The kinds of numbers differ; torch would convert them silently.
    """
    own = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
    for name, value in tensors.items():
        target = own.get(name)
        if target is not None and not same_kind(value, target):
            raise WeightsError(f"{path}: {shorten(name)} holds {value.dtype}, expected {target.dtype}. {AGAIN}")


def same_kind(value: Tensor, target: Tensor) -> bool:
    """Return whether the values of one tensor can be copied into another without changing their meaning."""
    return value.is_floating_point() == target.is_floating_point() and value.is_complex() == target.is_complex()


def check_stored(value: Tensor, dtype: torch.dtype, shape: tuple[int, ...], name: str) -> None:
    """Raise a WeightsError if a part of a checkpoint other than its weights has a wrong type or shape."""
    if value.dtype != dtype or value.shape != shape:
        raise WeightsError(
            f"The checkpoint's {name} is {value.dtype} {list(value.shape)}, expected {dtype} {list(shape)}: it is "
            "damaged."
        )


def hash_weights(tensors: Mapping[str, Tensor], *, typed: bool = False) -> str:
    """Return the SHA-256 of names and values, as 64 hexadecimal digits.

    Args:
        tensors: Weights by name; the order does not matter.
        typed: Whether shapes and types are part of the digest. Checkpoints hold digests of both kinds.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update((f"{name} {list(value.shape)} {value.dtype} " if typed else name).encode())
        if not value.is_meta:
            digest.update(bytes_of(value))
    return digest.hexdigest()


def bytes_of(x: Tensor) -> Any:
    """Return the values of a tensor as bytes, row by row."""
    return x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def shorten(text: object, length: int = LONGEST) -> str:
    """Return a foreign text in one line, cut to the maximum length."""
    line = one_line(text)
    return line if len(line) <= length else f"{line[:length]}..."


def _load(path: Path) -> Mapping[str, Any]:
    """Return the unpickled content of a file.

    Raises:
        WeightsNotFoundError: There is no such file.
        WeightsError: It cannot be read or is not a mapping.
    """
    _check_path(path)
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        elif _is_archive(path):
            status = path.stat()
            sizes = _check_archive(path, status.st_size, status.st_mtime_ns, status.st_ino)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            _check_storages(content, sizes, path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:  # unpicklers raise errors of many classes if the bytes are not a checkpoint
        raise WeightsError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}: {_reason(error)}). "
            f"Expected a .pt, .ckpt or .safetensors file with tensors and plain values only. {AGAIN}"
        ) from error
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}, expected a mapping from names to tensors.")
    return content


def _check_path(path: Path) -> None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise WeightsNotFoundError(f"Checkpoint not found: {shorten(path)}. Check ckpt_path.") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise WeightsError(f"{shorten(path)} cannot be opened: {reason}. Check ckpt_path.") from error
    if stat.S_ISDIR(status.st_mode):
        raise WeightsError(f"{path} is a folder, expected a .pt, .ckpt or .safetensors file. Check ckpt_path.")
    if not stat.S_ISREG(status.st_mode):
        raise WeightsError(f"{path} is a device or pipe, expected a .pt, .ckpt or .safetensors file. Check ckpt_path.")
    if not status.st_size:
        raise WeightsError(f"{path} cannot be read as a checkpoint: it is empty. {AGAIN}")


def _reason(error: Exception) -> str:
    """Return the line with the reason of a message: torch's message begins with advice if a class is not allowed."""
    lines = str(error).splitlines() or [""]
    return shorten(next((line for line in lines if "Unsupported" in line), lines[0]))


def _is_archive(path: Path) -> bool:
    """Return whether a file has torch's zip format, which can be mapped into memory."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


@lru_cache(maxsize=64)
def _check_archive(path: Path, *identity: int) -> frozenset[int]:
    """Verify the checksums of a zip file, which torch does not, and return the sizes of its members in bytes.

    Args:
        path: The file.
        identity: Size, time and inode of the file, so that an unchanged file is read only once.

    Raises:
        WeightsError: A member is compressed or damaged.
    """
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if len({member.filename for member in members}) < len(members):
            raise WeightsError(f"{path} is damaged: it holds two members of one name. {AGAIN}")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED:
                raise WeightsError(
                    f"{path} is a compressed zip file, and torch writes checkpoints uncompressed. Unpack it with "
                    "unzip and pack it again with zip -0 -r."
                )
            if member.CRC == 0:
                continue  # torch.serialization.set_crc32_options(False)
            try:
                with archive.open(member) as file:
                    while file.read(CHUNK):
                        pass
            except zipfile.BadZipFile as error:
                raise WeightsError(f"{path} is damaged: {shorten(error)}. {AGAIN}") from error
        return frozenset(member.file_size for member in members)


def _check_storages(content: Any, sizes: frozenset[int], path: Path) -> None:
    """Raise an error if a tensor would read beyond the end of its member, which mapping does not prevent."""
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        elif isinstance(part, Tensor) and part.layout == torch.strided and not part.is_meta:
            size = part.untyped_storage().nbytes()
            if size and size not in sizes:
                raise WeightsError(f"{path} is damaged: a tensor has {size} bytes, and no member of it has. {AGAIN}")


def _find_weights(content: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name."""
    key = next((key for key in ("state_dict", "model") if key in content), None)
    stored = content if key is None else content[key]
    if not isinstance(stored, Mapping):
        raise WeightsError(f"{path}: its {key} is a {type(stored).__name__}, expected a mapping.")
    tensors = {name: value for name, value in stored.items() if isinstance(value, Tensor)}
    for name in tensors:
        if not isinstance(name, str):
            raise WeightsError(f"{path}: a tensor is called {shorten(repr(name))}, expected a text. {AGAIN}")
    if key == "state_dict":
        for name, value in stored.items():
            if not isinstance(value, Tensor) and not str(name).endswith("_extra_state"):
                raise WeightsError(
                    f"{path}: {shorten(name)} in its state_dict is a {type(value).__name__}, expected a tensor. A "
                    "state_dict has one level of names, with dots, e.g. 'encoder.0.norm1.weight'."
                )
    return tensors


def _check_tensor(name: str, value: Tensor, path: Path) -> None:
    """Raise an error if a tensor cannot be a weight of any model."""
    kinds = {
        "is on the meta device and has no values": value.is_meta,
        "is quantised": value.is_quantized,
        "is nested": value.is_nested,
        f"is sparse ({value.layout})": value.layout != torch.strided,
        f"is of type {value.dtype}": value.is_floating_point() and value.dtype not in FLOATS,
    }
    for what, found in kinds.items():
        if found:
            raise WeightsError(
                f"{path}: {shorten(name)} {what}, expected a plain tensor. Save the state_dict of the plain model with "
                "torch.save, in float32, float16 or bfloat16."
            )


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise an error if a weight has NaN or infinite values."""
    broken = [name for name, value in tensors.items() if not name.endswith(MAY_BE_UNSET) and not _is_finite(value)]
    if not broken:
        return
    value = tensors[broken[0]]
    count = int((~value.isfinite()).sum())
    others = f", and so are values of {len(broken) - 1} further tensors" if len(broken) > 1 else ""
    raise WeightsError(
        f"{path}: {count} of {value.numel()} values of {shorten(broken[0])} are NaN or infinite{others}. The training "
        "that wrote it diverged, or the file is damaged: use an earlier checkpoint, or copy or download it again."
    )


def _is_finite(value: Tensor) -> bool:
    if not value.numel() or not (value.is_floating_point() or value.is_complex()):
        return True
    if value.is_complex():
        return bool(value.isfinite().all())
    least, largest = value.aminmax()  # one pass, without a mask as large as the tensor; NaN goes through
    return bool(least.isfinite() & largest.isfinite())


def _mapping(value: Any, name: str, path: str | Path) -> Mapping[str, Any]:
    """Return a part of a checkpoint that maps names to values; empty if the checkpoint lacks it."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise WeightsError(f"{path}: its {name} is a {type(value).__name__}, expected a mapping. {AGAIN}")
    if any(not isinstance(key, str) for key in value):
        raise WeightsError(f"{path}: its {name} has a key that is not a string. {AGAIN}")
    return value
