"""The commands `compare`, `zero-shot`, `localise` and `few-shot`; heavy imports wait until one of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from terramind_plugin.errors import ConfigError, DataError, check_seed, counted
from terramind_plugin.evaluate.arms import DEFAULT_ARMS, read_budgets
from terramind_plugin.evaluate.output import markdown, progress, show, weights_of, write_json
from terramind_plugin.files import write_figure, write_text
from terramind_plugin.inference.options import ModelArguments
from terramind_plugin.raster.paths import RemotePath
from terramind_plugin.system import refuse_inputs

EUROSAT = {
    "AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial", "Pasture", "PermanentCrop", "Residential",
    "River", "SeaLake",
}  # fmt: skip
"""Folder names of EuroSAT's classes (arXiv:1709.00029)."""
PAPER = "For comparison, the paper's accuracy on EuroSAT (arXiv:2504.11171), 5-way 1-shot: TerraMind v1 base 70.83 %."


def run_compare(
    *,
    config: Path,
    out: Path,
    arms: list[str] | None = None,
    labels: str = "all",
    seeds: int = 3,
    metric: str = "test/mIoU",
    overrides: Sequence[str] = (),
) -> None:
    """Fine-tune in several ways under the same budget.

    Prints and plots result and costs of each way. --trainer.max_epochs=3 or --trainer.max_time=00:00:10:00 apply to all
    runs. The same command resumes an interrupted run.

    Arms: plain, the whole backbone is fine-tuned; tim, it generates a modality first; tim-cache, with a cache of the
    generated tokens; lora, adapters in a frozen backbone; frozen, only neck and decoder train; frozen-cache, with a
    cache of the backbone's features; oracle, the true modality is given instead of generated.

    Args:
        config: Configuration, as for terramind fit.
        out: Folder to write to.
        arms: Ways of fine-tuning (default: all but oracle).
        labels: Training samples with labels, e.g. 8,32,all; the same for all arms of a seed, each with as many steps.
        seeds: Runs of each arm.
        metric: Metric of the test; more is better.
        overrides: Options of TerraTorch.
    """
    from terramind_plugin.evaluate.compare import Comparison, Run, compare
    from terramind_plugin.evaluate.compare_report import draw, summarise, table

    names = list(DEFAULT_ARMS) if arms is None else arms
    budgets = read_budgets(labels)
    total = len(names) * seeds * len(budgets)
    started = 0

    def announce(run: Run, known: bool) -> None:
        nonlocal started
        started += 1
        note = " (done before)" if known else ""
        print(f"{started}/{total} {run}{note}", flush=True)

    plan = Comparison(config, names, seeds, out, overrides, budgets)
    results = compare(plan, announce)
    summaries = summarise(results, metric)
    rows = table(summaries, metric)
    show(rows, f"{config.name}, {counted(seeds, 'seed')}")
    write_text(out / "table.md", markdown(rows))
    title = f"{config.name}: mean and standard deviation of {counted(seeds, 'seed')}"
    write_figure(out / "figure.png", draw(summaries, metric, title))
    for name in ("table.md", "figure.png", "runs"):
        print(out / name)


def run_zero_shot(
    *,
    config: Path,
    target: str,
    positive: str = "1",
    inputs: list[list[str]] | None = None,
    out: Path = Path("zero_shot"),
    model: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    tokenizer_ckpt_path: dict[str, Path] | None = None,
    batch_size: int = 8,
    restart: bool = False,
    overrides: Sequence[str] = (),
) -> None:
    """Map a land cover class without training and compare with labels.

    Land cover is generated from each set of a configuration's modalities, for its test split. The same command resumes.

    Args:
        config: Configuration, as for terramind fit.
        target: Land cover classes, e.g. water or 'water,flooded vegetation'.
        positive: Ids in the labels that mean the same.
        inputs: Set of modalities such as S2L1C,S1GRD; repeatable (default: all sets).
        out: Folder to write to.
        model: Registry name, path of a checkpoint, or hub:ORG/NAME (default: the configuration's backbone).
        temperature: 0 takes the likeliest tokens, 1 samples.
        seed: Same seed, same maps.
        tokenizer_ckpt_path: Weights of the tokenizer of a modality; repeatable.
        batch_size: Windows at once.
        restart: Do not go on with an unfinished run.
        overrides: Options of TerraTorch.
    """
    from terramind_plugin._version import __version__
    from terramind_plugin.evaluate import zero_shot as work
    from terramind_plugin.evaluate import zero_shot_report as report
    from terramind_plugin.evaluate.testset import read_experiment
    from terramind_plugin.model.lookup import look_up_model

    check_seed(seed)
    wanted = work.read_target(target, positive)
    experiment = read_experiment(config, overrides)
    if model is not None:
        variant, path = look_up_model(model)
        experiment = replace(experiment, variant=variant.name, ckpt_path=path, pretrained=True)
    sets = work.choose_inputs(list(experiment.test.expected), inputs or [])
    described = {
        "model": f"{experiment.variant}_generate",
        "weights": weights_of(experiment.variant, experiment.pretrained, experiment.ckpt_path),
        "temperature": f"{temperature:g}",
        "seed": str(seed),
        "terramind_plugin_version": __version__,
    }
    generator = work.build_land_cover_generator(
        experiment.variant,
        list(experiment.test.expected),
        pretrained=experiment.pretrained,
        ckpt_path=experiment.ckpt_path,
        tokenizer_ckpt_paths=tokenizer_ckpt_path,
        temperature=temperature,
    )
    generating = work.TargetGenerator(generator, wanted, experiment.test.scales, seed)
    window = work.window_options(experiment.variant, out, batch_size=batch_size, restart=restart)
    done = work.map_target(generating, experiment, sets, window, described)
    rows = [work.score(experiment.test, wanted, names, pairs) for names, pairs in done.items()]
    show(report.table(rows), f"{wanted.name}, zero-shot, {described['model']}, weights: {described['weights']}")
    if report.is_sen1floods11(experiment.test, wanted):
        print(report.PAPER)
    write_json(out / "zero_shot.json", report.record(rows, wanted, described))
    best = max(rows, key=lambda row: len(row.inputs))
    title = f"{wanted.name} from {' and '.join(best.inputs)}, zero-shot: {described['model']}, {described['weights']}"
    write_figure(out / "zero_shot.png", report.draw(experiment.test, wanted, best, done[best.inputs], title))
    for path in (out / "zero_shot.json", out / "zero_shot.png"):
        print(path)
    for names in done:
        print(out / "+".join(names))


def run_localise(
    chips: list[RemotePath | Path],
    *,
    modality: str,
    out: Path,
    source: ModelArguments,
    bands: list[str] | None = None,
    batch_size: int = 16,
    tokenizer_file: Path | None = None,
    top: int = 5,
    labelled: bool = False,
    mass: float = 0.999,
) -> None:
    """Say where chips are.

    The probability of each location of the model's grid is written as a map. A model sees the middle of a chip that is
    larger than its image.

    Args:
        chips: Rasters, or folders with rasters.
        modality: Modality of the chips, e.g. S2L2A.
        out: Folder to write to.
        source: Model.
        bands: Order of the files' bands, if it is another, e.g. B04,B03,B02.
        batch_size: Chips at once.
        tokenizer_file: Vocabulary of coords.
        top: Number of likeliest locations to print.
        labelled: Compare with the locations in the files' georeferences, without maps.
        mass: Leave out latitudes that together are less likely than 1 - mass.
    """
    import numpy as np

    from terramind_plugin.evaluate import locate as work
    from terramind_plugin.evaluate import locate_report as report
    from terramind_plugin.evaluate.chips import ChipFiles, find_rasters, size_of

    variant, ckpt_path = source.look_up()
    entry, side, patch = size_of(variant.name, modality)
    if top < 1:
        raise ConfigError(f"top must be at least 1, got {top}.")
    files = ChipFiles(find_rasters(chips), entry, side, patch, bands or [])
    maps = {} if labelled else _name_maps(out, files.paths)
    true = files.positions(required=labelled)
    model = work.build_locator(
        variant.name,
        entry.name,
        pretrained=source.pretrained,
        ckpt_path=ckpt_path,
        tokenizer_file=tokenizer_file,
    )
    count = counted(len(files), "chip")
    weights = weights_of(variant.name, source.pretrained, ckpt_path)
    described = {"model": f"{variant.name}_generate", "weights": weights, "modality": entry.name}
    out.mkdir(parents=True, exist_ok=True)
    rows, likeliest, middles = [], [], []
    with progress("Places", len(files)) as advance:
        located = work.locate(model, entry.name, files, mass=mass, batch_size=batch_size)
        for chip, belief in located:
            best, shares = belief.likeliest(top)
            likeliest.append(best[0])
            middles.append(belief.middle())
            rows.append(report.describe(chip, best, shares, middles[-1]))
            if not labelled:
                tif, png = maps[chip.path]
                report.write_belief(tif, belief, {**described, "input": chip.path.name})
                title = f"{chip.path.name}: {described['model']}, weights: {weights}"
                write_figure(png, report.draw_chip(chip, entry.name, belief, top, title))
            advance(1)
    report.write_places(out / "places.csv", rows)
    if not labelled:
        for row in rows:
            print(report.sentence(row))
        print(out)
        return
    errors = work.compare_errors(np.array(true), np.stack(likeliest), np.stack(middles))
    show(report.table(errors), f"{count}, {described['model']}, weights: {weights}")
    write_json(out / "places.json", {**described, "chips": len(files), "errors": report.record(errors)})
    title = f"{count}, {entry.name}: {described['model']}, weights: {weights}"
    write_figure(out / "places.png", report.draw_errors(np.array(true), np.stack(middles), errors, title))
    for name in ("places.csv", "places.json", "places.png"):
        print(out / name)


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


def run_few_shot(
    patches: Path,
    *,
    modality: str,
    out: Path,
    source: ModelArguments,
    bands: list[str] | None = None,
    batch_size: int = 16,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
    resize: int | None = None,
) -> None:
    """Tell classes from a few labelled patches, without training.

    Each patch gets the class with the nearest mean of the encoder's tokens. Band means and random weights are shown for
    comparison.

    Args:
        patches: Folder with a folder for each class, or a CSV with columns path and label.
        modality: Modality of the patches, e.g. S2L2A.
        out: Folder to write to.
        source: Model.
        bands: Order of the files' bands, if it is another, e.g. B04,B03,B02.
        batch_size: Patches at once.
        ways: Classes in an episode.
        shots: Labelled patches of each class.
        queries: Further patches of each class, whose class is predicted.
        episodes: Random choices of classes and patches.
        seed: Seed of the episodes.
        resize: Height and width in pixels that patches are resampled to (default: as they are).
    """
    from terramind_plugin.evaluate import few_shot as work
    from terramind_plugin.evaluate.chips import ChipFiles, size_of

    variant, ckpt_path = source.look_up()
    entry, side, patch = size_of(variant.name, modality)
    if resize is not None and (resize < patch or resize % patch):
        raise ConfigError(f"resize must be a multiple of {patch}, got {resize}.")
    task = work.Task(ways, shots, queries, episodes, seed)
    labelled = work.list_patches(patches)
    labels = [one.label for one in labelled]
    drawn = work.draw_episodes(labels, task)
    chips = ChipFiles([one.path for one in labelled], entry, side, patch, bands or [])
    chips.positions()
    weights = weights_of(variant.name, source.pretrained, ckpt_path)
    settings = [(weights, source.pretrained, ckpt_path), ("random", False, None)]
    encoders = {
        f"{variant.name}, {name} weights": work.build_encoder(
            variant.name, entry.name, pretrained=published, ckpt_path=path
        )
        for name, published, path in settings[: 1 if weights == "random" else 2]
    }
    with progress("Features", len(chips)) as advance:
        features = work.measure_features(encoders, entry, chips, resize=resize, batch_size=batch_size, on_batch=advance)
    arms = {name: work.evaluate(one, drawn) for name, one in features.items()}
    rows = [
        [name, f"{100 * one.value:.2f}", f"{100 * one.interval[0]:.2f} to {100 * one.interval[1]:.2f}"]
        for name, one in arms.items()
    ]
    rows.append(["chance", f"{100 / ways:.2f}", "-"])
    head = ["features", "accuracy, %", "95 % interval"]
    show([head, *rows], f"{ways}-way {shots}-shot, {counted(episodes, 'episode')}, {len(labelled)} patches")
    if set(labels) == EUROSAT and (ways, shots) == (5, 1):
        print(PAPER)
    content = {
        "modality": entry.name,
        "patches": len(labelled),
        "classes": sorted(set(labels)),
        **vars(task),
        "accuracy": {name: one.record() for name, one in arms.items()},
    }
    write_json(out / "few_shot.json", content)
    print(out / "few_shot.json")
