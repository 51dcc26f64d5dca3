"""Whatever a configuration or a file holds, a check ends with a table or a message, and leaves nothing behind."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from terramind_plugin.samples.checks.run import check_data
from terramind_plugin.simulation.dataset import SimulatedDataset, simulate
from tests.check.spoiling import files, plan
from tests.runs.running import segmentation_config

YAML_CASES, RASTER_CASES = 700, 1500
"""In the slow tests; together at least 2000."""


def fuzz(cases: int) -> Callable[[Any], Any]:
    """Return settings for one of the long runs; what fails is reported as found, since shrinking it takes long."""
    return settings(
        max_examples=cases,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**40), 2**40),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(
        ["", "S1", "B2", "val/loss", "/", ".", "~", "*", "${x}", "null", "0x10", "2024-99-99", "é", "\x00"]
    ),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALARS, inner, max_size=3), max_leaves=5
)


@st.composite
def mutated_text(draw: st.DrawFn, config: dict[str, Any]) -> bytes:
    """Draw a configuration with keys deleted, renamed, doubled or retyped, or a text that was spoilt."""
    config = copy.deepcopy(config)
    for _ in range(draw(st.integers(1, 3))):
        place: Any = config
        # Deeper places are many more: start at a part, then go down some levels.
        for _ in range(draw(st.integers(0, 5))):
            inner = [value for value in (place.values() if isinstance(place, dict) else place) if value]
            inner = [value for value in inner if isinstance(value, dict | list)]
            if not inner:
                break
            place = draw(st.sampled_from(inner))
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            continue
        key = draw(st.sampled_from(keys))
        kind = draw(st.sampled_from(["delete", "rename", "retype", "swap", "wrap"]))
        if kind == "delete":
            del place[key]
        elif kind == "rename" and isinstance(place, dict):
            new = draw(st.one_of(SCALARS, st.permutations(str(key)).map("".join), st.just(f"{key}s")))
            place[new] = place.pop(key)
        elif kind == "swap":
            other = draw(st.sampled_from(keys))
            place[key], place[other] = place[other], place[key]
        elif kind == "wrap":
            place[key] = draw(st.sampled_from([[place[key]], {"x": place[key]}]))
        else:
            place[key] = draw(VALUES)
    text = yaml.safe_dump(config, allow_unicode=True, sort_keys=False)
    kind = draw(st.sampled_from(["as it is"] * 6 + ["cut", "double", "tab", "bytes", "encoding"]))
    lines = text.splitlines(keepends=True) or [""]
    line = draw(st.integers(0, len(lines) - 1))
    if kind == "cut":
        text = text[: draw(st.integers(0, len(text)))]
    elif kind == "double":
        text = "".join(lines[: line + 1] + lines[line:])
    elif kind == "tab":
        text = "".join([*lines[:line], "\t", *lines[line:]])
    elif kind == "encoding":
        return text.encode(draw(st.sampled_from(["utf-16", "utf-32", "utf-8-sig", "cp037"])), errors="replace")
    data = text.encode("utf-8", errors="surrogatepass")
    if kind == "bytes":
        position = draw(st.integers(0, len(data)))
        data = data[:position] + draw(st.binary(min_size=1, max_size=8)) + data[position:]
    return data


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """Draw a file that was cut, has flipped bits or foreign bytes, or is something else."""
    kind = draw(st.sampled_from(["cut", "flip", "header", "overwrite", "other", "empty middle"]))
    if kind == "cut":
        return sound[: draw(st.integers(0, len(sound) - 1))]
    if kind == "other":
        return draw(st.sampled_from([b"", b"II*\0", b"MM\0*\0\0\0\x08", b"II+\0"])) + draw(st.binary(max_size=300))
    spoilt = bytearray(sound)
    if kind == "empty middle":
        start = draw(st.integers(0, len(sound)))
        return sound[:start] + sound[start + draw(st.integers(1, 500)) :]
    if kind == "overwrite":
        start, new = draw(st.integers(0, len(sound) - 1)), draw(st.binary(min_size=1, max_size=64))
        spoilt[start : start + len(new)] = new
        return bytes(spoilt)
    # The first directory of a GeoTIFF is near its start, or at its end.
    span = len(sound) if kind == "flip" else min(len(sound), 700)
    for _ in range(draw(st.integers(1, 8))):
        position = draw(st.integers(0, span - 1))
        position = position if kind == "flip" or draw(st.booleans()) else len(sound) - 1 - position
        spoilt[position] ^= 1 << draw(st.integers(0, 7))
    return bytes(spoilt)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> SimulatedDataset:
    """Return the smallest data set."""
    return simulate(tmp_path_factory.mktemp("few"), size=32, chips=3)


def run_check(data: bytes, folder: Path, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return exit status and output of terramind check with these bytes as its configuration."""
    from terramind_plugin.cli import main

    path = folder / "config.yaml"
    path.write_bytes(data)
    status = main(["check", "-c", str(path), "--samples", "2", "--no_step"])
    assert [entry.name for entry in folder.iterdir()] == ["config.yaml"]
    return status, "".join(capfd.readouterr())


def check_configuration(few: SimulatedDataset, folder: Path, capfd: Any, cases: int) -> None:
    config = segmentation_config(few)
    config["data"]["init_args"]["batch_size"] = 1

    @fuzz(cases)
    @given(mutated_text(config))
    @example(b"")
    @example(b"\xff\xfe")
    @example(b"[" * 3000)
    @example(b"data: 2024-99-99")
    @example(b"? {a: b}\n: c")
    @example(b"&a [*a]")
    def mutation(data: bytes) -> None:
        status, out = run_check(data, folder, capfd)
        assert status in (0, 2)
        assert "Traceback" not in out
        assert (status == 2) == ("terramind: the configuration or its data have errors" in out)

    mutation()


def check_rasters(few: SimulatedDataset, folder: Path, cases: int) -> None:
    shutil.copytree(few.root, folder / "chips")
    dataset = SimulatedDataset(folder / "chips", few.chip_ids, few.splits)
    sound = {kind: files(dataset, kind)[0] for kind in ("S2L1C", "S1GRD", "Label")}
    contents = {kind: path.read_bytes() for kind, path in sound.items()}
    names = sorted(path.name for path in dataset.root.rglob("*"))
    listed = plan(dataset, {"data.batch_size": 1})

    @fuzz(cases)
    @given(st.sampled_from(sorted(contents)).flatmap(lambda kind: st.tuples(st.just(kind), damaged(contents[kind]))))
    def damage(case: tuple[str, bytes]) -> None:
        kind, data = case
        sound[kind].write_bytes(data)
        try:
            found = list(check_data(listed, ignored=-1))
        finally:
            sound[kind].write_bytes(contents[kind])
        assert all(finding.seen for finding in found)
        assert sorted(path.name for path in dataset.root.rglob("*")) == names
        if not data.startswith((b"II", b"MM")):
            assert any(finding.check == "files: readable" and sound[kind].name in finding.seen for finding in found)

    damage()


def test_some_configurations(few: SimulatedDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_configuration(few, tmp_path, capfd, 6)


def test_some_rasters(few: SimulatedDataset, tmp_path: Path) -> None:
    check_rasters(few, tmp_path, 40)


@pytest.mark.slow
def test_many_configurations(few: SimulatedDataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    check_configuration(few, tmp_path, capfd, YAML_CASES)


@pytest.mark.slow
def test_many_rasters(few: SimulatedDataset, tmp_path: Path) -> None:
    check_rasters(few, tmp_path, RASTER_CASES)
