"""The command `terramind compare`; heavy imports wait until it runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from terramind_plugin.evaluate.arms import DEFAULT_ARMS
from terramind_plugin.evaluate.budgets import read_budgets
from terramind_plugin.files import write_figure, write_text

WIDTH = 110
"""Characters that the table needs."""


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

    Prints and plots what each way gives and costs. --trainer.max_epochs=3 or --trainer.max_time=00:00:10:00 hold for
    all runs. A run that was broken off goes on with the same command.

    Arms: plain, the whole backbone is fine-tuned; tim, it generates a modality first; tim-memo, with a cache of what it
    generates; lora, adapters in a frozen backbone; frozen, only neck and decoder train; frozen-memo, with a cache of
    the backbone's features; oracle, the true modality is given instead of generated.

    Args:
        config: Configuration, as for terramind fit.
        out: Folder to write to.
        arms: Ways of fine-tuning (default: all but oracle).
        labels: Training samples with labels, e.g. 8,32,all; the same for all arms of a seed, each with as many steps.
        seeds: Runs of each arm.
        metric: Metric of the test; more is better.
        overrides: Options of TerraTorch.
    """
    from rich.console import Console
    from rich.table import Table

    from terramind_plugin.evaluate.compare import Comparison, Run, compare
    from terramind_plugin.evaluate.report import draw, markdown, summarise, table

    names = list(DEFAULT_ARMS) if arms is None else arms
    budgets = read_budgets(labels)
    total = len(names) * seeds * len(budgets)
    started, console = 0, Console(width=max(Console().width, WIDTH))

    def announce(run: Run, known: bool) -> None:
        nonlocal started
        started += 1
        note = " (done before)" if known else ""
        console.print(f"{started}/{total} {run}{note}", highlight=False)

    plan = Comparison(config, names, seeds, out, overrides, budgets)
    results = compare(plan, announce)
    summaries = summarise(results, metric)
    head, *rows = table(summaries, metric)
    shown = Table(*head, title=f"{config.name}, {seeds} {'seed' if seeds == 1 else 'seeds'}")
    for row in rows:
        shown.add_row(*row)
    console.print(shown)
    write_text(out / "table.md", markdown([head, *rows]))
    title = f"{config.name}: mean and standard deviation of {seeds} {'seed' if seeds == 1 else 'seeds'}"
    write_figure(out / "figure.png", draw(summaries, metric, title))
    for name in ("table.md", "figure.png", "runs"):
        print(out / name)
