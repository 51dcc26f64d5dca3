"""The command `tokenize`; slow imports happen only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from terramind_plugin.errors import ConfigError, counted


def run_tokenize(
    *,
    data: dict[str, Path],
    out: Path,
    model: str = "terramind_v1_base",
    tokenizer_ckpt_path: dict[str, Path] | None = None,
    symmetries: Literal[8, 1] = 8,
    replace: bool = False,
    modalities: list[str] | None = None,
    splits: list[str] | None = None,
) -> None:
    """Store the token ids of chips for masked modelling.

    Args:
        data: GeoTIFFs of a modality, e.g. S2L2A=data/S2L2A, or with a suffix, 'S2L2A=data/*_S2L2A.tif'; repeatable. Or
            terramesh:ROOT for the tar shards of TerraMesh in a folder, at a URL, or at hub:ORG/NAME.
        out: Folder to write to.
        model: Model whose tokenizers are used: a registry name, a path, or hub:ORG/NAME.
        tokenizer_ckpt_path: Weights of a modality's tokenizer instead of the model's; repeatable.
        symmetries: 8 to encode each tile under all symmetries of a square, 1 to encode it unchanged.
        replace: Replace files that are out of date.
        modalities: Modalities of TerraMesh; by default all that have a tokenizer.
        splits: Splits of TerraMesh; by default train and val, if they exist.
    """
    from terramind_plugin.model.lookup import look_up_model
    from terramind_plugin.model.modalities import resolve

    paths = {resolve(name).name: path for name, path in (tokenizer_ckpt_path or {}).items()}
    is_mesh = "terramesh" in data
    if is_mesh and len(data) > 1:
        raise ConfigError("--data terramesh:ROOT must be the only --data. Tokenise folders in a separate run.")
    if not is_mesh and (modalities or splits):
        raise ConfigError("--modalities and --splits are for --data terramesh:ROOT. Leave them out.")
    variant, _ = look_up_model(model)
    if is_mesh:
        _tokenize_mesh(variant.family, data["terramesh"], out, paths, symmetries, replace, modalities, splits)
    else:
        _tokenize_folders(variant.family, data, out, paths, symmetries, replace)


def _tokenize_mesh(
    family: str,
    root: Path,
    out: Path,
    paths: dict[str, Path],
    symmetries: int,
    replace: bool,
    modalities: list[str] | None,
    splits: list[str] | None,
) -> None:
    from rich.progress import Progress

    from terramind_plugin.pretrain.mesh_tokens import tokenize_shards
    from terramind_plugin.shards.stores import open_store

    store = open_store(str(root))
    with Progress() as progress:
        bars: dict[str, Any] = {}

        def show(name: str, done: int, total: int) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            progress.update(bars[name], completed=done)

        written = tokenize_shards(
            family,
            store,
            out,
            ckpt_paths=paths,
            splits=splits,
            modalities=modalities,
            symmetries=symmetries,
            replace_files=replace,
            on_sample=show,
        )
    size = sum(path.stat().st_size for path in written)
    at = f" at revision {store.revision}" if store.revision else ""
    print(f"{out}: {counted(len(written), 'file')} written ({size / 1e6:.2f} MB), the others up to date{at}")


def _tokenize_folders(
    family: str, data: dict[str, Path], out: Path, paths: dict[str, Path], symmetries: int, replace: bool
) -> None:
    from rich.progress import Progress

    from terramind_plugin.pretrain.chip_tokens import tokenize_folders
    from terramind_plugin.samples.layout import make_folders

    patterns = {name: path.name for name, path in data.items() if path.name.startswith("*")}
    folders = make_folders({name: path.parent if name in patterns else path for name, path in data.items()}, patterns)
    with Progress() as progress:
        bars = {name: progress.add_task(name, total=None) for name in folders}
        written = tokenize_folders(
            family,
            folders,
            out,
            ckpt_paths=paths,
            symmetries=symmetries,
            replace=replace,
            on_chip=lambda name, done, total: progress.update(bars[name], completed=done, total=total),
        )
    for name in folders:
        path = out / f"{name}.safetensors"
        print(f"{path} ({path.stat().st_size / 1e6:.2f} MB{'' if path in written else ', up to date'})")
