"""The short tables of bench/README.md, made from results.json: what was found beside what was aimed at."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.cases import WORKS
from bench.compare import Row, Side
from bench.loading import AIMS as LOADING_AIMS
from bench.model import SHARE
from bench.report import AIMS, describe_machine, describe_ratio, load_line, table, write_report
from bench.shards import AIM as SHARDS_AIM
from bench.shards import OURS as SHARDS_OURS
from bench.sources import AIM_CPU, AIM_ENGINE, AIM_MEMORY, FEW, MANY
from bench.start import IMPORTS, SECONDS_MORE, TIMES

HEAD = ["what", "found", "aim", "verdict"]
Line = list[str]
"""Cells of a row: what, found, aim, verdict."""
MIB = 2**20


def write_tables(results: Path, readme: Path, parts: list[str]) -> None:
    """Write the tables of some parts into the README.

    Args:
        results: results.json.
        readme: File with a pair of marks for each part.
        parts: Keys of `LINES`.
    """
    everything = json.loads(results.read_text())
    for part in parts:
        write_report(readme, part, render_part(part, everything[part]))


def render_part(part: str, found: Mapping[str, Any]) -> str:
    """Return machine and date, other load if there was some, and the table of a part."""
    loads = [row["other_load"] for row in found.get("rows", []) if "other_load" in row]
    lines = [describe_machine(found["machine"])]
    if loads and load_line(loads).startswith("**"):
        lines += ["", load_line(loads)]
    return "\n".join([*lines, "", *table(HEAD, LINES[part](found))])


def _judged(what: str, value: float, bound: float, met: bool, *, least: bool = False, form: str = ".2f") -> Line:
    """Return the row of an aim."""
    return [what, f"{value:{form}}", f"at {'least' if least else 'most'} {bound:g}", "met" if met else "**missed**"]


def _speeds(found: Mapping[str, Any]) -> list[Line]:
    """Return the comparisons that have an aim; the others are in results.json."""
    lines = []
    for one in found["rows"]:
        row = Row(**{**one, "reference": Side(*one["reference"]), "ours": Side(*one["ours"])})
        if row.aim is not None:
            what = f"{row.size}, {row.work}: {row.ours} beside {row.reference}, times as fast"
            lines.append([what, describe_ratio(tuple(row.ratio)), f"at least {row.aim:.2f}", row.verdict()])
    return lines


def _backbone(found: Mapping[str, Any]) -> list[Line]:
    lines = []
    for precision, aim in AIMS.items():
        for work in WORKS:
            group = [row for row in found["rows"] if (row["precision"], row["work"]) == (precision, work)]
            if group:
                worst = min((row["ratio"]["own necks"] for row in group), key=lambda ratio: ratio[0])
                met = worst[0] >= aim - (0.02 if aim == 1.0 else 0.0)
                what = f"{work}, {precision}, times as fast, the slower of tiny and base"
                lines.append(
                    [what, describe_ratio(tuple(worst)), f"at least {aim:.2f}", "met" if met else "**missed**"]
                )
    shares = {f"{row['size']} {row['work']} {row['precision']}": row["memory"]["own necks"] / row["memory"]["reference"]
              for row in found["rows"] if row["memory"]}  # fmt: skip
    most = max(shares, key=shares.__getitem__)
    lines.append(_judged(f"peak memory, times TerraTorch's, at worst ({most})", shares[most], 1, shares[most] <= 1))
    same = [row for row in found["agreement"] if row["precision"] == "float32"]
    worst = max(row["difference"] for row in same)
    lines.append(["features and gradients in float32, largest difference", f"{worst:.1e}", "", ""])
    return lines


def _generation(found: Mapping[str, Any]) -> list[Line]:
    lines = _speeds(found)
    by = {(row["size"], row["who"]): row for row in found["footprints"]}
    for size in dict.fromkeys(size for size, _ in by):
        theirs, ours = by[size, "TerraTorch"], by[size, "ours"]
        for key, what in (("checkpoint_bytes", "checkpoint"), ("training_peak", "peak memory of a training step")):
            lines.append([f"{size}: {what}, times TerraTorch's", f"{ours[key] / theirs[key]:.2f}", "", ""])
    return lines


def _cache(found: Mapping[str, Any]) -> list[Line]:
    lines = _speeds(found)
    for text in found["look_up"]:
        what, share, verdict = re.fullmatch(r"(.*): .* \((.*), (.*)\)", text).groups()  # type: ignore[union-attr]
        lines.append([f"{what}: share of looking up", share, "below 2%", verdict])
    return lines


def _decoder(found: Mapping[str, Any]) -> list[Line]:
    kept = [text.split(": ") for text in found["kept"]]
    return _speeds(found) + [[f"{what}: kept for the backward pass", size, "", ""] for what, size in kept]


def _scenes(found: Mapping[str, Any]) -> list[Line]:
    peaks = {row["side"]: row["peak"] for row in found["peaks"] if row["who"] == "ours"}
    growth, largest, apart = peaks[8192] / peaks[2048], peaks[10980] / MIB, found["agreement"]["inside"]
    return [
        *_speeds(found),
        _judged("memory of 8192 x 8192, times that of 2048 x 2048", growth, 1.25, growth <= 1.25),
        _judged("memory of 10980 x 10980, MiB", largest, 2861, largest < 3e9 / MIB, form=".0f"),
        _judged("scores where both blend alike, largest difference", apart, 1e-5, apart <= 1e-5, form=".1e"),
    ]


def _sources(found: Mapping[str, Any]) -> list[Line]:
    rows, engine = {row["who"]: row for row in found["rows"]}, found["engine"]
    ours, worst, (first, last) = rows["this package"], max(engine["cpu"].values()), engine["memory"]
    lines = [
        _judged("CPU time, times that of rasterio", ours["ratio"], AIM_CPU, ours["ratio"] <= AIM_CPU),
        _judged("engine, CPU s a block", worst, AIM_ENGINE, worst <= AIM_ENGINE, form=".4f"),
        _judged(f"memory after {MANY} blocks, times that after {FEW}", last / first, AIM_MEMORY,
                last <= AIM_MEMORY * first, form=".3f"),
        _judged("bytes served, times those of the blocks touched", ours["share"], 1.3, ours["share"] <= 1.3),
    ]  # fmt: skip
    others = [row for row in rows.values() if row["who"] not in ("this package", "rasterio, a block at a time")]
    return lines + [
        [f"{row['who']}: CPU time, times that of rasterio", f"{row['ratio']:.2f}", "", ""] for row in others
    ]


def _shards(found: Mapping[str, Any]) -> list[Line]:
    ours = found["seconds"][SHARDS_OURS]
    rate = 1 / statistics.median(ours)
    lines = [_judged("samples a second and core", rate, SHARDS_AIM, rate >= SHARDS_AIM, least=True, form=".0f")]
    for reader, times in found["seconds"].items():
        if reader != SHARDS_OURS:
            ratio = statistics.median(other / own for other, own in zip(times, ours, strict=True))
            lines.append([f"{reader}: times as long", f"{ratio:.2f}", "", ""])
    return lines


def _loading(found: Mapping[str, Any]) -> list[Line]:
    lines = []
    for _, transforms, reader, other, aim in LOADING_AIMS:
        times = found["seconds"][transforms]
        reference = times.get(other) or found["seconds"][""][other]
        ratio = statistics.median(theirs / ours for theirs, ours in zip(reference, times[reader], strict=True))
        what = f"{reader}, {transforms}: time, times that of {other}"
        lines.append(_judged(what, 1 / ratio, round(1 / aim, 2), ratio >= aim))
    return lines


def _start(found: Mapping[str, Any]) -> list[Line]:
    made, checked = (found["seconds"][name] for name in ("terramind generate on a chip", "terramind check --no_step"))
    alone, imported = IMPORTS
    torch_alone, terratorch = found["seconds"][alone], found["seconds"][imported]
    more, times = made - torch_alone, checked / terratorch
    return [
        _judged(f"generate on a chip, CPU s more than {alone}", more, SECONDS_MORE, more <= SECONDS_MORE),
        _judged(f"check --no_step, times {imported}", times, TIMES, times <= TIMES),
    ]


def _model(found: Mapping[str, Any]) -> list[Line]:
    shares = [_judged(f"tiny, {name}: share of CPU time in the model", share, SHARE, share >= SHARE, least=True)
              for name, share in found["shares"]]  # fmt: skip
    return _speeds(found) + shares


LINES: dict[str, Callable[[Mapping[str, Any]], list[Line]]] = {
    "backbone": _backbone,
    "generation": _generation,
    "cache": _cache,
    "decoder": _decoder,
    "scenes": _scenes,
    "sources": _sources,
    "shards": _shards,
    "loading": _loading,
    "model": _model,
    "start": _start,
}
"""For each part what makes its rows."""
