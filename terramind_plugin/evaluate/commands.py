"""The commands of evaluation, `compare` to `figure`; slow imports happen only when one of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from terramind_plugin.errors import ConfigError, DataError, check_seed, counted
from terramind_plugin.evaluate.arms import DEFAULT_ARMS, read_budgets
from terramind_plugin.evaluate.options import ChipOptions, ZeroShotOptions
from terramind_plugin.evaluate.output import markdown, progress, show, weights_of, write_json
from terramind_plugin.inference.options import ModelArguments, device_type
from terramind_plugin.raster.paths import RemotePath
from terramind_plugin.system.files import write_figure, write_text
from terramind_plugin.system.process import refuse_inputs

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
    """Fine-tune in several ways with the same budget.

    Prints and plots the result and the costs of each way. Options such as --trainer.max_epochs=3 or
    --trainer.max_time=00:00:10:00 apply to all runs. The same command resumes an interrupted comparison.

    Arms: plain, the whole backbone is fine-tuned; tim, it generates a modality first; tim-cache, like tim, with cached
    tokens; lora, adapters in a frozen backbone; frozen, only neck and decoder train; frozen-cache, like frozen, with
    cached features; oracle, like tim, with the true modality instead of a generated one.

    Args:
        config: Configuration, as for terramind fit.
        out: Folder to write to.
        arms: Ways of fine-tuning (default: all but oracle).
        labels: Numbers of labelled training samples, e.g. 8,32,all; all arms of a seed get the same samples and steps.
        seeds: Number of runs of each arm.
        metric: Metric of the test for which more is better.
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
    title = f"Ways of fine-tuning with {config.name}: mean and standard deviation of {counted(seeds, 'seed')}"
    write_figure(out / "figure.png", draw(summaries, metric, title))
    for name in ("table.md", "figure.png", "runs"):
        print(out / name)


def run_zero_shot(
    *,
    config: Path,
    target: str,
    options: ZeroShotOptions,
    positive: str = "1",
    inputs: list[list[str]] | None = None,
    model: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    tokenizer_ckpt_path: dict[str, Path] | None = None,
    overrides: Sequence[str] = (),
) -> None:
    """Map a land cover class without training, and compare the maps with labels.

    Generates land cover for the test split of a configuration, from each combination of its modalities. The same
    command resumes an interrupted run.

    Args:
        config: Configuration, as for terramind fit.
        target: Land cover classes, e.g. water or 'water,flooded vegetation'.
        options: Windows, devices and files.
        positive: Class ids of the target in the labels, separated by commas.
        inputs: A combination of modalities such as S2L1C,S1GRD; repeatable (default: all combinations).
        model: Registry name, path of a checkpoint, or hub:ORG/NAME (default: the configuration's backbone).
        temperature: Temperature of sampling; 0 takes the most likely tokens.
        seed: Seed of the random numbers.
        tokenizer_ckpt_path: Weights of the tokenizer of a modality; repeatable.
        overrides: Options of TerraTorch.
    """
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
    windows = work.settle_windows(options, experiment.variant)
    described = work.describe_experiment(experiment, temperature, seed)
    generator = work.build_target_generator(experiment, wanted, tokenizer_ckpt_path, temperature, seed)
    done = work.map_target(generator, experiment, sets, windows, described)
    rows = [work.score(experiment.test, wanted, names, pairs) for names, pairs in done.items()]
    show(report.table(rows), f"{wanted.name}, zero-shot, {described['model']}, weights: {described['weights']}")
    if report.is_sen1floods11(experiment.test, wanted):
        print(report.PAPER)
    report.write(options.out, experiment.test, wanted, rows, done, described)
    for name in ("zero_shot.json", "zero_shot.png", *("+".join(names) for names in done)):
        print(options.out / name)


def run_localise(
    chips: list[RemotePath | Path],
    *,
    options: ChipOptions,
    source: ModelArguments,
    tokenizer_file: Path | None = None,
    top: int = 5,
    labelled: bool = False,
    mass: float = 0.999,
) -> None:
    """Estimate the locations of chips.

    Writes a map of the probability of each location of the model's grid. Of a chip larger than the model's image, the
    model sees the middle.

    Args:
        chips: Rasters, or folders with rasters.
        options: Chips and results.
        source: Model.
        tokenizer_file: File with the vocabulary of coords.
        top: Number of most likely locations to print.
        labelled: Compare with the locations from the files' georeferences, and write no maps.
        mass: Leave out latitudes that together are less likely than 1 - mass.
    """
    from terramind_plugin.evaluate import locate as work
    from terramind_plugin.evaluate import locate_report as report
    from terramind_plugin.evaluate.chips import find_rasters, open_chips

    variant, ckpt_path = source.look_up()
    if top < 1:
        raise ConfigError(f"top must be at least 1, got {top}.")
    files = open_chips(find_rasters(chips), options, variant)
    maps = {} if labelled else _name_maps(options.out, files.paths)
    files.positions(required=labelled)
    name, device = files.modality.name, device_type(options.accelerator)
    model = work.build_locator(
        variant.name, name, pretrained=source.pretrained, ckpt_path=ckpt_path, tokenizer_file=tokenizer_file
    ).to(device)
    model.for_inference(options.mode_for(files))
    weights = weights_of(variant.name, source.pretrained, ckpt_path)
    described = {"model": f"{variant.name}_generate", "weights": weights, "modality": name}
    options.out.mkdir(parents=True, exist_ok=True)
    places = []
    with progress("Places", len(files)) as advance:
        for chip, belief in work.locate(model, name, files, mass=mass, batch_size=options.batch_size):
            places.append(report.LocatedChip.of(chip, belief, top))
            if not labelled:
                report.write_chip(maps[chip.path], chip, belief, top, described)
            advance(1)
    report.write_places(options.out / "places.csv", places)
    if labelled:
        for path in report.report_errors(options.out, places, described):
            print(path)
        return
    for place in places:
        print(place)
    print(options.out)


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
                f"{inputs[target]} and {path} would both be written to {target}. Use two commands, each with another "
                "--out."
            )
        inputs[target] = path
    names = {path: (target, target.with_suffix(".png")) for target, path in inputs.items()}
    refuse_inputs((target for pair in names.values() for target in pair), paths)
    return names


def run_few_shot(
    patches: Path,
    *,
    options: ChipOptions,
    source: ModelArguments,
    ways: int = 5,
    shots: int = 1,
    queries: int = 15,
    episodes: int = 600,
    seed: int = 0,
    resize: int | None = None,
) -> None:
    """Classify patches by a few labelled ones, without training.

    Each patch gets the class with the nearest mean of the encoder's tokens. Band means and random weights are shown for
    comparison.

    Args:
        patches: Folder with a folder for each class, or a CSV with columns path and label.
        options: Chips and results.
        source: Model.
        ways: Classes in an episode.
        shots: Number of labelled patches of each class.
        queries: Number of further patches of each class whose class is predicted.
        episodes: Number of random choices of classes and patches.
        seed: Seed of the episodes.
        resize: Height and width in pixels to which patches are resampled (default: not resampled).
    """
    from terramind_plugin.evaluate import few_shot as work
    from terramind_plugin.evaluate.chips import open_chips

    variant, ckpt_path = source.look_up()
    patch = variant.patch_size
    if resize is not None and (resize < patch or resize % patch):
        raise ConfigError(f"resize must be a multiple of {patch}, got {resize}.")
    task = work.Task(ways, shots, queries, episodes, seed)
    labelled = work.list_patches(patches)
    labels = [one.label for one in labelled]
    drawn = work.draw_episodes(labels, task)
    chips = open_chips([one.path for one in labelled], options, variant)
    chips.positions()
    device, weights = device_type(options.accelerator), weights_of(variant.name, source.pretrained, ckpt_path)
    encoders = {
        f"{variant.name}, {name} weights": work.build_encoder(
            variant.name, chips.modality.name, pretrained=pretrained, ckpt_path=path, compile=options.mode_for(chips)
        ).to(device)
        for name, (pretrained, path) in {weights: (source.pretrained, ckpt_path), "random": (False, None)}.items()
    }
    with progress("Features", len(chips)) as advance:
        features = work.measure_features(
            encoders, chips.modality, chips, resize=resize, batch_size=options.batch_size, on_batch=advance
        )
    arms = {name: work.evaluate(one, drawn) for name, one in features.items()}
    show(work.table(arms, task), f"{task}, {len(labelled)} patches")
    if set(labels) == EUROSAT and (ways, shots) == (5, 1):
        print(PAPER)
    described = {"modality": chips.modality.name, "patches": len(labelled), "classes": sorted(set(labels))}
    accuracy = {name: one.record() for name, one in arms.items()}
    write_json(options.out / "few_shot.json", {**described, **vars(task), "accuracy": accuracy})
    print(options.out / "few_shot.json")


def run_figure(
    *, data: Path, predictions: Path, out: Path, chips: int = 4, class_names: list[str] | None = None
) -> None:
    """Draw inputs, labels and predictions of some chips, or of a simulated region, as a PNG, and print the scores.

    Args:
        data: Folder with S2L1CHand, LabelHand, ..., or with a catalogue that simulate --world stac wrote.
        predictions: Folder that predict or map --stac wrote.
        out: Picture to write.
        chips: Number of chips.
        class_names: Names of the classes in their order (default: Land,Water).
    """
    names = class_names or ["Land", "Water"]
    if (data / "catalog.json").is_file():
        from terramind_plugin.evaluate.region_figure import draw_region

        draw_region(data, predictions, out, names)
    else:
        from terramind_plugin.evaluate.figure import draw_predictions

        rows = draw_predictions(data, predictions, out, chips=chips, class_names=names)
        if len(rows) > 1:
            show(rows, str(predictions))
    print(out)
