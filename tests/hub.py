"""A cache of the Hugging Face hub, made by hand."""

from __future__ import annotations

from pathlib import Path


def cached_file(cache: Path, repository: str, name: str) -> Path:
    """Return the path of a repository's file in a cache, whose folders are made."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(snapshot.name)
    return snapshot / name
