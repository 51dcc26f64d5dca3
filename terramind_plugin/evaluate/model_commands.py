"""The words of `terramind zero-shot`, `localise` and `few-shot`; heavy imports wait until one of them runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from terramind_plugin.errors import ConfigError, DataError, check_seed
from terramind_plugin.files import write_figure, write_text
from terramind_plugin.inference.commands import add_weights, read_pairs
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.raster.paths import raster_path
from terramind_plugin.system import refuse_inputs

EUROSAT = {
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential",
    "River", "SeaLake",
}  # fmt: skip
"""Classes of EuroSAT (arXiv:1709.00029), as its folders are called."""
PAPER = "For comparison, the paper's accuracy on EuroSAT (arXiv:2504.11171), 5-way 1-shot: TerraMind v1 base 70.83 %."
RANDOM = "terramind: the weights are random, so the results say nothing but that it runs."


def add_commands(commands: Any) -> None:
    """Add the commands to the subparsers of `terramind`."""
    _add_zero_shot(commands)
    _add_localise(commands)
    _add_few_shot(commands)


def _add_zero_shot(commands: Any) -> None:
    text = "map a land cover class without training and compare with labels"
    parser = commands.add_parser(
        "zero-shot",
        help=text,
        description=f"{text.capitalize()}: land cover is generated from each set of a configuration's modalities, for "
        "its test split. Options of terramind fit hold; the same command resumes.",
    )
    parser.add_argument("-c", "--config", type=Path, required=True, metavar="YAML", help="as for terramind fit")
    parser.add_argument(
        "--target",
        required=True,
        metavar="CLASSES",
        help="land cover classes, e.g. 'water' or 'water,flooded vegetation'",
    )
    parser.add_argument(
        "--positive", default="1", metavar="IDS", help="ids in the labels that mean the same (default: %(default)s)"
    )
    parser.add_argument(
        "--inputs",
        action="append",
        default=[],
        metavar="NAMES",
        help="a set such as S2L1C,S1GRD; repeatable (default: all)",
    )
    parser.add_argument("--out", type=Path, default=Path("zero_shot"), metavar="DIR", help="default: %(default)s")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest tokens (default), 1 samples"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: %(default)s")
    add_tokenizer_files(parser)
    parser.add_argument("--batch_size", type=int, default=8, metavar="N", help="windows at once (default: %(default)s)")
    parser.add_argument("--restart", action="store_true", help="do not go on with an unfinished run")
    parser.set_defaults(run=_zero_shot, words=[])


def _zero_shot(options: argparse.Namespace) -> None:
    from terramind_plugin._version import __version__
    from terramind_plugin.evaluate import zero_shot as work
    from terramind_plugin.evaluate import zero_shot_report as report
    from terramind_plugin.evaluate.testset import read_experiment

    check_seed(options.seed)
    target = work.read_target(options.target, options.positive)
    tokenizers = read_tokenizer_files(options)
    experiment = read_experiment(options.config, options.words)
    sets = work.choose_inputs(list(experiment.test.expected), options.inputs)
    described = {
        "model": f"{experiment.variant}_generate",
        "weights": weights_of(experiment.variant, experiment.pretrained, experiment.ckpt_path),
        "temperature": f"{options.temperature:g}",
        "seed": str(options.seed),
        "terramind_plugin_version": __version__,
    }
    generator = work.build_land_cover_generator(
        experiment.variant,
        list(experiment.test.expected),
        pretrained=experiment.pretrained,
        ckpt_path=experiment.ckpt_path,
        tokenizer_ckpt_paths=tokenizers,
        temperature=options.temperature,
    )
    model = work.TargetGenerator(generator, target, experiment.test.scales, options.seed)
    window = work.window_options(
        experiment.variant, options.out, batch_size=options.batch_size, restart=options.restart, verbose=True
    )
    done = work.map_target(model, experiment, sets, window, described)
    rows = [work.score(experiment.test, target, names, pairs) for names, pairs in done.items()]
    head, *cells = report.table(rows)
    show([head, *cells], f"{target.name}, zero-shot, {described['model']}, weights: {described['weights']}")
    if report.is_sen1floods11(experiment.test, target):
        print(report.PAPER)
    write_json(options.out / "zero_shot.json", report.record(rows, target, described))
    best = max(rows, key=lambda row: len(row.inputs))
    title = f"{target.name} from {' and '.join(best.inputs)}, zero-shot: {described['model']}, {described['weights']}"
    write_figure(options.out / "zero_shot.png", report.draw(experiment.test, target, best, done[best.inputs], title))
    for path in (options.out / "zero_shot.json", options.out / "zero_shot.png"):
        print(path)
    for names in done:
        print(options.out / "+".join(names))


def _add_localise(commands: Any) -> None:
    text = "say where chips are"
    parser = commands.add_parser(
        "localise",
        help=text,
        description=f"{text.capitalize()}: the probability of each place of the model's grid, as a map. Of a chip that "
        "is larger than the model's image its middle is looked at.",
    )
    parser.add_argument("chips", type=raster_path, nargs="+", metavar="PATH", help="rasters, or folders with rasters")
    _add_model_options(parser)
    parser.add_argument("--tokenizer_file", type=Path, metavar="FILE", help="vocabulary of coords")
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="likeliest places to print (default: %(default)s)"
    )
    parser.add_argument(
        "--labelled", action="store_true", help="compare with the places in the files' georeferences, without maps"
    )
    parser.add_argument(
        "--mass",
        type=float,
        default=0.999,
        metavar="P",
        help="leave out latitudes that together are less likely than 1 - P (default: %(default)s)",
    )
    parser.set_defaults(run=_localise)


def _add_few_shot(commands: Any) -> None:
    text = "tell classes from a few labelled patches, without training"
    parser = commands.add_parser(
        "few-shot",
        help=text,
        description=f"{text.capitalize()}: the nearest class mean of the encoder's tokens, next to that of band means "
        "and to random weights.",
    )
    parser.add_argument(
        "patches", type=Path, metavar="PATH", help="a folder with a folder for each class, or a CSV: path,label"
    )
    _add_model_options(parser)
    for name, default, meaning in (
        ("ways", 5, "classes in an episode"),
        ("shots", 1, "labelled patches of each class"),
        ("queries", 15, "further patches of each class, to be told"),
        ("episodes", 600, "random choices of classes and patches"),
        ("seed", 0, "of the episodes"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"{meaning} (default: {default})")
    parser.add_argument(
        "--resize", type=int, metavar="PX", help="resample patches to so many pixels (default: as they are)"
    )
    parser.set_defaults(run=_few_shot)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--modality", required=True, metavar="NAME", help="what they show, e.g. S2L2A")
    parser.add_argument("--bands", metavar="NAMES", help="order of the files' bands, if it is another: B01,B02,...")
    parser.add_argument("--model", default="terramind_v1_base", metavar="NAME", help="default: %(default)s")
    add_weights(parser)
    parser.add_argument("--batch_size", type=int, default=16, metavar="N", help="chips at once (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")


def _localise(options: argparse.Namespace) -> None:
    import numpy as np

    from terramind_plugin.evaluate import locate as work
    from terramind_plugin.evaluate import locate_report as report
    from terramind_plugin.evaluate.chips import ChipFiles, find_rasters, size_of

    modality, side, patch = size_of(options.model, options.modality)
    if options.top < 1:
        raise ConfigError(f"top must be at least 1, got {options.top}.")
    chips = ChipFiles(find_rasters(options.chips), modality, side, patch, split_names(options.bands))
    files = {} if options.labelled else _name_maps(options.out, chips.paths)
    true = chips.positions(required=options.labelled)
    model = work.build_locator(
        options.model,
        modality.name,
        pretrained=options.pretrained,
        ckpt_path=options.ckpt_path,
        tokenizer_file=options.tokenizer_file,
    )
    weights = weights_of(options.model, options.pretrained, options.ckpt_path)
    described = {"model": f"{options.model}_generate", "weights": weights, "modality": modality.name}
    options.out.mkdir(parents=True, exist_ok=True)
    rows, likeliest, middles = [], [], []
    with progress("Places", len(chips)) as advance:
        located = work.locate(model, modality.name, chips, mass=options.mass, batch_size=options.batch_size)
        for chip, belief in located:
            best, shares = belief.likeliest(options.top)
            likeliest.append(best[0])
            middles.append(belief.middle())
            rows.append(report.describe(chip, best, shares, middles[-1]))
            if not options.labelled:
                tif, png = files[chip.path]
                report.write_belief(tif, belief, {**described, "input": chip.path.name})
                title = f"{chip.path.name}: {described['model']}, weights: {weights}"
                write_figure(png, report.draw_chip(chip, modality.name, belief, options.top, title))
            advance(1)
    report.write_places(options.out / "places.csv", rows)
    if not options.labelled:
        for row in rows:
            print(report.sentence(row))
        print(options.out)
        return
    errors = work.compare_errors(np.array(true), np.stack(likeliest), np.stack(middles))
    show(report.table(errors), f"{len(chips)} chips, {described['model']}, weights: {weights}")
    write_json(options.out / "places.json", {**described, "chips": len(chips), "errors": report.record(errors)})
    title = f"{len(chips)} chips, {modality.name}: {described['model']}, weights: {weights}"
    write_figure(options.out / "places.png", report.draw_errors(np.array(true), np.stack(middles), errors, title))
    for name in ("places.csv", "places.json", "places.png"):
        print(options.out / name)


def _name_maps(out: Path, paths: Sequence[Path]) -> dict[Path, tuple[Path, Path]]:
    """Return the map and the picture of each raster.

    Raises:
        ConfigError: One is an input.
        DataError: Two rasters would have one map.
    """
    inputs: dict[Path, Path] = {}
    for path in paths:
        target = out / f"{path.stem}_places.tif"
        if target in inputs:
            raise DataError(
                f"{inputs[target]} and {path} would both be written to {target}. Give them to two commands with "
                "another --out each."
            )
        inputs[target] = path
    names = {path: (target, target.with_suffix(".png")) for target, path in inputs.items()}
    refuse_inputs((target for pair in names.values() for target in pair), paths)
    return names


def _few_shot(options: argparse.Namespace) -> None:
    from terramind_plugin.evaluate import few_shot as work
    from terramind_plugin.evaluate.chips import ChipFiles, size_of

    modality, side, patch = size_of(options.model, options.modality)
    if options.resize is not None and (options.resize < patch or options.resize % patch):
        raise ConfigError(f"resize must be a multiple of {patch}, got {options.resize}.")
    task = work.Task(options.ways, options.shots, options.queries, options.episodes, options.seed)
    patches = work.list_patches(options.patches)
    labels = [one.label for one in patches]
    episodes = work.draw_episodes(labels, task)
    chips = ChipFiles([one.path for one in patches], modality, side, patch, split_names(options.bands))
    chips.positions()
    weights = weights_of(options.model, options.pretrained, options.ckpt_path)
    settings = [(weights, options.pretrained, options.ckpt_path), ("random", False, None)]
    encoders = {
        f"{options.model}, {name} weights": work.build_encoder(
            options.model, modality.name, pretrained=pretrained, ckpt_path=ckpt_path
        )
        for name, pretrained, ckpt_path in settings[: 1 if weights == "random" else 2]
    }
    with progress("Features", len(chips)) as advance:
        features = work.measure_features(
            encoders, modality, chips, resize=options.resize, batch_size=options.batch_size, on_batch=advance
        )
    arms = {name: work.evaluate(one, episodes) for name, one in features.items()}
    rows = [
        [name, f"{100 * one.value:.2f}", f"{100 * one.interval[0]:.2f} to {100 * one.interval[1]:.2f}"]
        for name, one in arms.items()
    ]
    rows.append(["chance", f"{100 / task.ways:.2f}", "-"])
    head = ["features", "accuracy, %", "95 % interval"]
    show([head, *rows], f"{task.ways}-way {task.shots}-shot, {task.episodes} episodes, {len(patches)} patches")
    if set(labels) == EUROSAT and (task.ways, task.shots) == (5, 1):
        print(PAPER)
    from terramind_plugin.evaluate.zero_shot_report import plain

    content = {
        "modality": modality.name,
        "patches": len(patches),
        "classes": sorted(set(labels)),
        **vars(task),
        "accuracy": {name: plain(one) for name, one in arms.items()},
    }
    write_json(options.out / "few_shot.json", content)
    print(options.out / "few_shot.json")


def weights_of(model: str, pretrained: bool, ckpt_path: Path | None) -> str:
    """Return which weights a model has, and say so where they are random.

    Args:
        model: Name of its variant.
        pretrained: Whether it has the published weights, or those that ship with this package.
        ckpt_path: A file with weights, which goes before.
    """
    if ckpt_path is not None:
        return ckpt_path.name
    if not pretrained:
        print(RANDOM, file=sys.stderr)
        return "random"
    return "trained on simulated worlds" if VARIANTS[model].hub_repo is None else "pre-trained"


def show(rows: Sequence[Sequence[str]], title: str) -> None:
    """Print a table whose head is its first row."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    Console(width=max(Console().width, 110)).print(table)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that is there when it is complete."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


@contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a bar, and give a function that moves it on."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:  # what is on stdout is for other programs
        task = bar.add_task(text, total=total)
        yield lambda count: bar.advance(task, count)


def split_names(words: str | None) -> list[str]:
    """Return names with commas between them."""
    return [word.strip() for word in (words or "").split(",") if word.strip()]


def add_tokenizer_files(parser: argparse.ArgumentParser) -> None:
    """Add the option that `read_tokenizer_files` reads."""
    parser.add_argument(
        "--tokenizer_ckpt_path",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="weights of the tokenizer of a modality; repeatable",
    )


def read_tokenizer_files(options: argparse.Namespace) -> dict[str, Path]:
    """Return files with tokenizer weights by modality.

    Raises:
        ConfigError: One is not written as NAME=FILE, or a modality is named twice.
    """
    pairs = read_pairs("--tokenizer_ckpt_path", options.tokenizer_ckpt_path, example="LULC=tokenizer.safetensors")
    return {name: Path(path) for name, path in pairs.items()}
