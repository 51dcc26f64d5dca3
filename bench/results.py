"""Page of results of the small model: `python -m bench.results --help`; `make results` calls it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jsonargparse import auto_cli

from bench import small_model_page as page
from bench.small_model import Weights, measure, read_world
from terramind_plugin._version import __version__
from terramind_plugin.errors import DataError
from terramind_plugin.evaluate.output import weights_of, write_json
from terramind_plugin.model.variants import find_variant
from terramind_plugin.system.files import write_figure, write_text


def write_results(
    data: Path,
    out: Path,
    model: str = "terramind_sim_nano",
    pretrained: bool = True,
    ckpt_path: Path | None = None,
    tokenizer_ckpt_path: dict[str, Path] | None = None,
) -> None:
    """Measure what a model has learned of simulated worlds, and write a page with tables and pictures.

    Args:
        data: Folder of `terramind simulate --world globe`, with a seed that no training used.
        out: Folder for RESULTS.md and results/.
        model: Name of the model.
        pretrained: Load the weights that belong to the model; false takes random ones.
        ckpt_path: File with weights to load instead.
        tokenizer_ckpt_path: Files with tokenizer weights, by modality.

    Raises:
        ConfigError: The model is unknown.
        DataError: The folder holds no simulated chips, or they are too small or too few.
        WeightsError: The weights are not there or do not fit.
    """
    find_variant(model)
    described = {
        "model": model,
        "weights": weights_of(model, pretrained, ckpt_path),
        "data": _simulated_with(data),
        "terramind_plugin_version": __version__,
    }
    world = read_world(data, model)
    weights = Weights(pretrained, ckpt_path, tokenizer_ckpt_path)
    results = measure(world, model, weights, lambda what: print(f"Measuring {what}", file=sys.stderr))
    for name, figure in page.pictures(results, f"{model}, weights: {described['weights']}").items():
        write_figure(out / page.FOLDER / name, figure)
    write_json(out / page.FOLDER / page.NUMBERS, page.record(results, described))
    write_text(out / page.PAGE, page.write_page(results, described))
    print(out / page.PAGE)


def _simulated_with(root: Path) -> str:
    """Return the command that made a simulated data set."""
    try:
        known = json.loads((root / "simulation.json").read_text(encoding="utf-8"))
        numbers = " ".join(f"--{name} {known[name]}" for name in ("chips", "size", "seed"))
        return f"terramind simulate --world {known.get('world', 'floods')} {numbers}"
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{root} is not a folder of terramind simulate ({type(error).__name__}).") from error


if __name__ == "__main__":
    auto_cli(write_results, as_positional=False)
