"""The commands `reconstruct`, `generate`, `map` and `embed`; they import heavy packages only when they run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from terramind_plugin.errors import ConfigError
from terramind_plugin.inference.options import EmbeddingOptions, ModelArguments, Options, SatelliteArguments
from terramind_plugin.raster.paths import RemotePath


def run_reconstruct(
    scenes: list[RemotePath | Path],
    *,
    modality: str,
    source: ModelArguments,
    options: Options,
    steps: int = 10,
    seed: int = 0,
    probabilities: bool = False,
) -> None:
    """Encode scenes to tokens and decode them again, to see what the tokenizer keeps.

    Args:
        scenes: Rasters of any size, in the units of the modality; nodata and NaN are filled.
        modality: Modality of the scenes, e.g. S2L2A.
        source: Model.
        options: Windows, devices and files.
        steps: Number of denoising steps of an image.
        seed: Seed of random numbers; equal seeds give equal files.
        probabilities: Also write the probabilities of classes, as float32.
    """
    from terramind_plugin.inference import generation
    from terramind_plugin.inference.settings import Settings

    variant, ckpt_path = source.look_up()
    _warn_of_random_weights(source, ckpt_path)
    settings = Settings(source.pretrained, ckpt_path, steps, seed)
    for path in generation.reconstruct(scenes, modality, settings, options, variant, probabilities=probabilities):
        print(path)


def run_generate(
    scenes: list[RemotePath | Path],
    *,
    modality: str,
    to: list[str],
    source: ModelArguments,
    options: Options,
    input: dict[str, str] | None = None,
    bands: list[str] | None = None,
    samples: int = 1,
    steps: int = 10,
    seed: int = 0,
    tokenizer_ckpt_path: dict[str, Path] | None = None,
    tokenizer_file: Path | None = None,
    probabilities: bool = False,
) -> None:
    """Generate other modalities of chips and whole scenes.

    Run the same command again to resume an interrupted run.

    Args:
        scenes: Rasters of any size, in the units of the modality; nodata and NaN are filled.
        modality: Modality of the scenes, e.g. S2L2A.
        to: Modalities to generate, in this order, e.g. S1GRD,DEM,LULC,coords.
        source: Model.
        options: Windows, devices and files.
        input: Further input of one scene, warped to its grid; coords=LONGITUDE,LATITUDE gives its location; repeatable.
        bands: Bands of the scenes if they lack some of the modality's, e.g. BLUE,GREEN,RED,NIR_NARROW, in the order of
            the files; if the files name their bands, the names decide.
        samples: Number of samples, from consecutive seeds; for several, their spread is also written.
        steps: Number of denoising steps of an image.
        seed: Seed of random numbers; equal seeds give equal files.
        tokenizer_ckpt_path: Weights of the tokenizer of a modality; repeatable.
        tokenizer_file: Vocabulary of coords.
        probabilities: Also write the probabilities of classes, as float32.
    """
    from terramind_plugin.inference import generation
    from terramind_plugin.inference.settings import Settings

    variant, ckpt_path = source.look_up()
    _warn_of_random_weights(source, ckpt_path)
    settings = Settings(source.pretrained, ckpt_path, steps, seed, tokenizer_ckpt_path or {}, tokenizer_file)
    written = generation.generate(
        scenes,
        modality,
        to,
        settings,
        options,
        variant,
        samples=samples,
        further=input,
        bands=bands,
        probabilities=probabilities,
    )
    for path in written:
        print(path)


def run_map(
    *,
    options: Options,
    satellites: SatelliteArguments,
    scene: list[list[RemotePath | Path]] | None = None,
    model: str | None = None,
    config: Path | None = None,
    ckpt_path: Path | None = None,
    probabilities: bool = False,
    overrides: Sequence[str] = (),
) -> None:
    """Map whole scenes, or an area from satellite catalogues, with a fine-tuned model.

    Run the same command again to resume an interrupted run.

    Args:
        scene: Rasters of any size; for several modalities, one --scene NAME=FILE each. The dates of a time series are
            in one file, or in several files separated by commas in the order of time: NAME=A,B,C.
        options: Windows, devices and files.
        satellites: Satellite catalogues instead of --scene.
        model: Fine-tuned model: a checkpoint of terramind fit, an exported folder, or hub:ORG/NAME.
        config: Configuration of the fine-tuning, as for terramind fit, if --model is not given.
        ckpt_path: Checkpoint for that configuration, if --model is not given.
        probabilities: Also write the probabilities of all classes, as float32.
        overrides: Options of TerraTorch.
    """
    from terramind_plugin.inference import segmentation

    places = satellites if satellites.asked(given=scene is not None, otherwise="--scene FILE") else None
    files = [[str(one) for one in files] for files in scene or ()]
    for path in segmentation.map_scenes(
        config,
        ckpt_path,
        files,
        options,
        overrides,
        probabilities=probabilities,
        satellites=places,
        model=model,
    ):
        print(path)


def run_embed(
    scenes: list[RemotePath | Path] | None = None,
    *,
    source: ModelArguments,
    options: EmbeddingOptions,
    satellites: SatelliteArguments,
    modality: list[str] | None = None,
    scene: list[list[RemotePath | Path]] | None = None,
    bands: list[str] | None = None,
    layer: int = -1,
    temporal_pooling: Literal["mean", "max", "diff", "concat"] | None = None,
    pool: Literal["none", "mean"] = "none",
    dtype: Literal["float32", "float16", "int8"] = "float32",
    format: Literal["cog", "zarr", "parquet"] = "cog",
    preview: bool = False,
) -> None:
    """Write embeddings of chips, of whole scenes, or of an area from satellite catalogues.

    Run the same command again to resume an interrupted run.

    Args:
        scenes: Rasters of any size, in the units of the modality; nodata and NaN are filled. The dates of a time series
            are in one file, or in several files separated by commas in the order of time: A,B,C.
        source: Model.
        options: Windows, devices and files.
        satellites: Satellite catalogues instead of scenes.
        modality: Modality of the scenes, e.g. S2L2A; with --stac all modalities to read, e.g. S2L2A,S1RTC.
        scene: Rasters of a modality, NAME=FILE ..., instead of scenes; repeatable.
        bands: Bands of the scenes if they lack some of the modality's, e.g. BLUE,GREEN,RED; for another modality
            NAME=BLUE,GREEN,RED; repeatable.
        layer: Layer of the encoder, counted from 0, or backwards from -1.
        temporal_pooling: How several dates become one vector (default: as a fine-tuned model was trained, else mean).
        pool: none for a vector for each patch, mean for one vector for each window.
        dtype: Type of the stored vectors; int8 has a scale for each dimension.
        format: cog for a Cloud-Optimized GeoTIFF with a band for each dimension, zarr, or parquet for GeoParquet.
        preview: Also draw the first three principal components as colours.
    """
    from terramind_plugin.inference.embedding import Storage, embed

    if options.cog and format != "cog":
        raise ConfigError(f"--cog and --format {format} contradict each other: give one of them.")
    places = satellites if satellites.asked(given=bool(scenes or scene)) else None
    inputs = _plan_embedding(scenes or [], scene or [], modality or [], bands or [], temporal_pooling, source, places)
    storage = Storage(format, dtype, pool, preview)
    for path in embed(options=options, storage=storage, layer=layer, satellites=places, **inputs):
        print(path)


def _plan_embedding(
    scenes: Sequence[Path],
    by_modality: Sequence[Sequence[Path]],
    modality: Sequence[str],
    bands: Sequence[str],
    temporal_pooling: Literal["mean", "max", "diff", "concat"] | None,
    source: ModelArguments,
    places: SatelliteArguments | None,
) -> dict[str, Any]:
    """Return the arguments of `embed` that say which files are read and which model reads them."""
    from terramind_plugin.backbones.series import SeriesPooling
    from terramind_plugin.inference.embedder import read_trained
    from terramind_plugin.inference.scenes import name_bands, name_modality, name_scenes
    from terramind_plugin.inference.settings import Settings

    variant, ckpt_path = source.look_up()
    trained = read_trained(ckpt_path)
    known = [] if trained is None else trained.names
    if places is None:
        if len(modality) > 1:
            raise ConfigError(
                f"--modality names one modality, got {', '.join(modality)}. Give --scene NAME=FILE for each."
            )
        typed = name_scenes(scenes, modality[0] if modality else None, by_modality, known)
        names = list(typed[0])
    else:
        typed, names = [], [name_modality(name, known) for name in modality] or known
        if not names:
            raise ConfigError("--stac needs the modalities to read: --modality S2L2A, or several: S2L2A,S1RTC.")
    _warn_of_random_weights(source, ckpt_path, "vectors mean nothing.")
    pooling = None if temporal_pooling is None else SeriesPooling(temporal_pooling)
    several = any(len(files) > 1 for one in typed for files in one.values())
    several |= places is not None and "," in str(places.date)
    if several and pooling is None and (trained is None or trained.pooling is None):
        pooling = SeriesPooling()
    return {
        "scenes": typed,
        "variant": variant,
        "settings": Settings(source.pretrained, ckpt_path),
        "bands": name_bands(bands, names),
        "pooling": pooling,
        "trained": trained,
        "modalities": names,
    }


def _warn_of_random_weights(
    source: ModelArguments, ckpt_path: Path | None, so: str = "pictures mean nothing: they are noise."
) -> None:
    if not source.pretrained and ckpt_path is None:
        print(f"terramind: the weights are random, so the {so}", file=sys.stderr)
