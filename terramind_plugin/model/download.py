"""Files of weights from the Hugging Face hub, or from this package."""

from __future__ import annotations

import errno
from pathlib import Path

from huggingface_hub import constants, hf_hub_download

from terramind_plugin.errors import WeightsError, WeightsNotFoundError

SHIPPED = Path(__file__).parents[1] / "shipped"
"""Folder of the weights and vocabularies that come with the package."""
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
"""Error numbers of a failing disk; such an error may not name a file."""


def fetch_file(name: str, repo: str | None, file: str, otherwise: str) -> Path:
    """Return the local path of a file on the Hugging Face hub, downloading it if needed.

    Args:
        name: Name of the model that needs the file, for the message.
        repo: Repository on the hub; None for a file that ships with this package.
        file: File in that repository, or in the package.
        otherwise: End of the message, after 'or download the file and'.

    Raises:
        WeightsNotFoundError: The file is not in the local cache and the hub cannot be reached.
        WeightsError: The cache cannot be read or written, e.g. because the disk is full.
    """
    if repo is None:
        return _shipped_file(name, file)
    try:
        return Path(hf_hub_download(repo_id=repo, filename=file))
    except Exception as error:  # from the network, its libraries and the disk
        reason = _disk_reason(error)
        if reason is not None:
            raise WeightsError(
                f"The weights of {name} cannot be stored in {constants.HF_HUB_CACHE}: {reason}.\n"
                f"Needed: file {file} of https://huggingface.co/{repo}\n"
                "Make room there or allow writing, or name another folder in the environment: HF_HOME=/path/to/folder"
            ) from error
        raise WeightsNotFoundError(
            f"The weights of {name} are not on this machine and could not be downloaded ({type(error).__name__}).\n"
            f"Needed: file {file} of https://huggingface.co/{repo}\n"
            f"Either run on a machine with network: hf download {repo} {file}\n"
            f"and copy the folder models--{repo.replace('/', '--')} to {constants.HF_HUB_CACHE}\n"
            f"or download the file and {otherwise}"
        ) from error


def _disk_reason(error: BaseException) -> str | None:
    """Return the disk's error message if a failing disk is the cause of a failed download, otherwise None."""
    seen: BaseException | None = error
    while seen is not None:
        named = isinstance(seen, OSError) and seen.filename is not None and not isinstance(seen, FileNotFoundError)
        if isinstance(seen, OSError) and (named or seen.errno in DISK_FULL):
            return f"{seen.strerror} ({seen.filename})" if seen.filename else str(seen.strerror)
        if "No space left on device" in str(seen):  # as text only, from the hub's own downloader
            return "No space left on device"
        seen = seen.__cause__ or seen.__context__
    return None


def _shipped_file(name: str, file: str) -> Path:
    path = SHIPPED / file
    if not path.is_file():
        raise WeightsNotFoundError(
            f"The weights of {name} should be in {path}, which is not there. They are trained with `make nano` in a "
            "clone of the repository; or start from random weights with pretrained: false."
        )
    return path
