"""The commands `reconstruct`, `generate` and `map`; heavy imports wait until one of them runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from terramind_plugin.inference.options import ModelArguments, WindowArguments
from terramind_plugin.raster.paths import RemotePath


def run_reconstruct(
    scenes: list[RemotePath | Path],
    *,
    modality: str,
    out: Path,
    source: ModelArguments,
    windows: WindowArguments,
    steps: int = 10,
    seed: int = 0,
    probabilities: bool = False,
) -> None:
    """Encode scenes to tokens and decode them again.

    Args:
        scenes: Rasters of any size, in the units of the modality; nodata and NaN are filled.
        modality: Modality of the scenes, e.g. S2L2A.
        out: Folder to write to.
        source: Model.
        windows: Windows.
        steps: Denoising steps of an image.
        seed: Same seed, same files.
        probabilities: Also write the probabilities of classes, as float32.
    """
    from terramind_plugin.inference import generation
    from terramind_plugin.inference.settings import Settings
    from terramind_plugin.model.modalities import resolve
    from terramind_plugin.tokenizers.variants import TOKENIZERS

    variant, ckpt_path = source.look_up()
    _warn_of_random_weights(source, ckpt_path)
    settings = Settings(source.pretrained, ckpt_path, steps, seed)
    settings.check()
    tokenizer = TOKENIZERS[generation.tokenizer_name(resolve(modality), variant)]
    options = _choose(windows, out, tokenizer.image_size, tokenizer.patch_size, tokenizer.patch_size)
    for path in generation.reconstruct(scenes, modality, settings, options, variant, probabilities=probabilities):
        print(path)


def run_generate(
    scenes: list[RemotePath | Path],
    *,
    modality: str,
    to: list[str],
    out: Path,
    source: ModelArguments,
    windows: WindowArguments,
    input: dict[str, str] | None = None,
    samples: int = 1,
    steps: int = 10,
    seed: int = 0,
    tokenizer_ckpt_path: dict[str, Path] | None = None,
    tokenizer_file: Path | None = None,
    probabilities: bool = False,
) -> None:
    """Generate other modalities of chips and whole scenes.

    The same command goes on with an interrupted run.

    Args:
        scenes: Rasters of any size, in the units of the modality; nodata and NaN are filled.
        modality: Modality of the scenes, e.g. S2L2A.
        to: Outputs in the order of generation, e.g. S1GRD,DEM,LULC,coords.
        out: Folder to write to.
        source: Model.
        windows: Windows.
        input: Further input of one scene, warped to its grid; coords=LONGITUDE,LATITUDE for its location; repeatable.
        samples: Number of samples, from consecutive seeds; several also give their spread.
        steps: Denoising steps of an image.
        seed: Same seed, same files.
        tokenizer_ckpt_path: Weights of the tokenizer of a modality; repeatable.
        tokenizer_file: Vocabulary of coords.
        probabilities: Also write the probabilities of classes, as float32.
    """
    from terramind_plugin.inference import generation
    from terramind_plugin.inference.settings import Settings

    variant, ckpt_path = source.look_up()
    _warn_of_random_weights(source, ckpt_path)
    settings = Settings(source.pretrained, ckpt_path, steps, seed, tokenizer_ckpt_path or {}, tokenizer_file)
    options = _choose(windows, out, variant.img_size, variant.patch_size, variant.patch_size)
    written = generation.generate(
        scenes,
        modality,
        to,
        settings,
        options,
        variant,
        samples=samples,
        further=input,
        probabilities=probabilities,
    )
    for path in written:
        print(path)


def run_map(
    *,
    config: Path,
    ckpt_path: Path,
    scene: list[list[RemotePath | Path]],
    out: Path,
    windows: WindowArguments,
    probabilities: bool = False,
    overrides: Sequence[str] = (),
) -> None:
    """Run a fine-tuned task over whole scenes.

    The same command goes on with an interrupted run.

    Args:
        config: Configuration of the fine-tuning, as for terramind fit.
        ckpt_path: Checkpoint of the task.
        scene: Rasters of any size; one --scene NAME=FILE for each modality if there are several.
        out: Folder to write to.
        windows: Windows.
        probabilities: Also write the probabilities of all classes, as float32.
        overrides: Options of TerraTorch.
    """
    from terramind_plugin.inference import segmentation

    task = segmentation.open_task(config, ckpt_path, list(overrides))
    options = _choose(windows, out, windows.crop or task.training_size(), task.patch)
    files = [[str(one) for one in files] for files in scene]
    for path in segmentation.map_scenes(task, files, options, probabilities=probabilities):
        print(path)


def _choose(windows: WindowArguments, out: Path, crop: int, patch: int, align: int = 1) -> Any:
    """Return the `Options` of a run; windows are as large as `crop` where no size is given."""
    from terramind_plugin.inference.job import PRECISIONS, Options

    values = {**vars(windows), "crop": windows.crop or crop, "precision": PRECISIONS[windows.precision]}
    return Options.choose(out, patch=patch, align=align, verbose=True, **values)


def _warn_of_random_weights(source: ModelArguments, ckpt_path: Path | None) -> None:
    if not source.pretrained and ckpt_path is None:
        print("terramind: the weights are random, so the pictures mean nothing: they are noise.", file=sys.stderr)
