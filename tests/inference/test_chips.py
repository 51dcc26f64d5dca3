"""`terramind reconstruct` and `terramind generate`: from a file to files on its grid."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from matplotlib.colors import to_rgb
from rasterio.transform import Affine
from rasterio.windows import Window

from terramind_plugin import __version__
from terramind_plugin.builders import build_generator, build_image_tokenizer
from terramind_plugin.cli import main
from terramind_plugin.inference.outputs import finish_modality, modality_layers
from terramind_plugin.inference.preview import draw_scene
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.raster.chips import read_chip
from terramind_plugin.raster.reader import Expected, Source
from terramind_plugin.simulation.dataset import chip_files, simulate
from tests.generation.conftest import scatter_weights
from tests.inference.conftest import refused

TERRAMESH = Path(__file__).parents[3] / "shared" / "data" / "terramesh"
SAMPLE = "433D_629L_3_1.tif"
STEPS = ("--steps", "2")
pytestmark = pytest.mark.usefixtures("small_tokenizers")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the files of a simulated chip, 64 x 64 pixels, by modality."""
    data = simulate(tmp_path_factory.mktemp("scenes"), chips=3, size=64)
    return chip_files(data.root, data.chip_ids[0])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, small_tokenizers: None, vocabulary: Path) -> dict[str, Path]:
    """Files with weights that give no constant images, as untrained decoders do."""
    folder = tmp_path_factory.mktemp("weights")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = build_generator(
            "terramind_v1_tiny",
            ["S2L2A", "S1RTC", "coords"],
            ["S1GRD", "DEM", "LULC", "NDVI"],
            tokenizer_file=vocabulary,
        )
        models: dict[str, Any] = {"generator": generator}
        for modality in ("S2L2A", "LULC"):
            models[modality] = build_image_tokenizer(f"terramind_v1_tokenizer_{modality.lower()}")
        for name, model in models.items():
            torch.save(scatter_weights(model).state_dict(), folder / f"{name}.pt")
    return {name: folder / f"{name}.pt" for name in models}


@pytest.fixture(scope="module")
def run(weights: dict[str, Path]) -> Any:
    """Run the generator on files and return the folder it wrote to."""

    def generate(chip: Path | list[Path], out: Path, to: str, *words: str | Path) -> Path:
        chips = chip if isinstance(chip, list) else [chip]
        common = ["--out", out, "--to", to, "--model", "terramind_v1_tiny", "--pretrained", "false", *STEPS]
        words = ("--ckpt_path", weights["generator"], *words)
        assert main(list(map(str, ["generate", *chips, "--modality", "S2L2A", *common, *words]))) == 0
        return out

    return generate


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    shape: tuple[int, int]
    crs: Any
    transform: Any
    nodata: float | None
    dtypes: tuple[str, ...]
    descriptions: tuple[str, ...]
    units: tuple[str, ...]
    tags: dict[str, str]


def _open(path: Path) -> tuple[np.ndarray, Header]:
    with rasterio.open(path) as raster:
        header = {name: getattr(raster, name) for name in Header.__annotations__ if name != "tags"}
        return raster.read(), Header(**header, tags=raster.tags())


def _write(path: Path, values: np.ndarray, like: Path, **changes: Any) -> Path:
    with rasterio.open(like) as raster:
        names, profile = raster.descriptions, raster.profile
    profile |= {"count": len(values), "height": values.shape[1], "width": values.shape[2], "dtype": values.dtype.name}
    with rasterio.open(path, "w", **{**profile, **changes}) as raster:
        raster.write(values)
        for number, name in enumerate(names[: len(values)] if len(names) == len(values) else (), start=1):
            raster.set_band_description(number, name)
    return path


def _assert_image(path: Path, modality: str, like: Path, steps: str = STEPS[1]) -> np.ndarray:
    """Check grid, names, units, range and tags of an output, and return its values."""
    entry = MODALITIES[modality]
    (values, raster), (_, grid) = _open(path), _open(like)
    assert (raster.shape, raster.crs, raster.transform) == (grid.shape, grid.crs, grid.transform)
    assert raster.descriptions == entry.band_names
    assert raster.units == (entry.units,) * len(entry.bands)
    if entry.kind == "classes":
        assert set(raster.dtypes) == {"uint8"}
        assert values.max() < len(entry.class_names)
        with rasterio.open(path) as opened:
            colors = opened.colormap(1)
        assert "1 = water, 2 = trees" in raster.tags["class_names"]
        for number, color in enumerate(entry.class_colors):
            alpha = 255 if number else 0  # no data is transparent
            assert colors[number] == (*(round(255 * part) for part in to_rgb(color)), alpha)
    else:
        assert set(raster.dtypes) == {"float32"}
        assert np.isnan(raster.nodata)
        low, high = entry.valid_range
        assert low <= np.nanmin(values) <= np.nanmax(values) <= high
    tags = raster.tags
    assert tags["terramind_plugin_version"] == __version__
    assert like.name in tags["input"]
    assert tags["steps"] == steps
    assert {"model", "weights", "seed"} <= set(tags)
    return values


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("modality", ["S2L2A", "LULC"])
def test_reconstruct(
    files: dict[str, Path], weights: dict[str, Path], tmp_path: Path, modality: str, capsys: Any
) -> None:
    words = ["reconstruct", str(files[modality]), "--modality", modality.lower(), *STEPS]
    words += ["--ckpt_path", str(weights[modality])]
    assert main([*words, "--out", str(tmp_path / "a"), "--seed", "3"]) == 0
    written = capsys.readouterr().out.split()
    stem = files[modality].stem
    assert _names(tmp_path / "a") == {f"{stem}_{modality}_reconstructed.{ending}" for ending in ("tif", "png")}
    assert {Path(path).name for path in written} == _names(tmp_path / "a")
    tif, png = map(Path, written)
    values = _assert_image(tif, modality, files[modality])
    assert np.isfinite(values).all()
    assert len(np.unique(values)) > 5
    assert png.read_bytes().startswith(b"\x89PNG")
    tags = _open(tif)[1].tags
    assert tags["seed"] == "3"
    assert tags["weights"].startswith(f"{modality}.pt (sha256 ")
    assert tags["model"] == f"terramind_v1_tokenizer_{modality.lower()}"
    assert main([*words, "--out", str(tmp_path / "b"), "--seed", "3"]) == 0
    assert (tmp_path / "b" / tif.name).read_bytes() == tif.read_bytes()
    assert main([*words, "--out", str(tmp_path / "c"), "--seed", "4"]) == 0
    assert (_open(tmp_path / "c" / tif.name)[0] == values).all() == (modality == "LULC")  # classes need no noise


def test_generate(files: dict[str, Path], run: Any, tmp_path: Path) -> None:
    chip = files["S2L2A"]
    folder = run(chip, tmp_path / "a", "S1GRD,DEM,LULC,NDVI")
    outputs = ("S1GRD", "DEM", "LULC", "NDVI")
    assert _names(folder) == {f"{chip.stem}_{name}.tif" for name in outputs} | {f"{chip.stem}_generated.png"}
    images = {name: _assert_image(folder / f"{chip.stem}_{name}.tif", name, chip) for name in outputs}
    assert all(len(np.unique(image)) > 5 for image in images.values())
    again = run(chip, tmp_path / "b", "S1GRD,DEM,LULC,NDVI")
    for path in folder.glob("*.tif"):
        assert path.read_bytes() == (again / path.name).read_bytes()
    other = run(chip, tmp_path / "c", "S1GRD,LULC", "--seed", "1")
    assert not np.array_equal(_open(other / f"{chip.stem}_S1GRD.tif")[0], images["S1GRD"])


def test_samples_and_their_spread(files: dict[str, Path], run: Any, tmp_path: Path) -> None:
    chip = files["S2L2A"]
    folder = run(chip, tmp_path / "many", "S1GRD,LULC", "--samples", "3", "--seed", "5")
    endings = [f"{name}{kind}" for name in ("S1GRD", "LULC") for kind in ("", "_sample2", "_sample3", "_spread")]
    assert _names(folder) == {f"{chip.stem}_{ending}.tif" for ending in endings} | {f"{chip.stem}_generated.png"}
    one = run(chip, tmp_path / "one", "S1GRD,LULC", "--seed", "6")
    samples: dict[str, list[np.ndarray]] = {}
    for name in ("S1GRD", "LULC"):
        paths = [folder / f"{chip.stem}_{name}{kind}.tif" for kind in ("", "_sample2", "_sample3")]
        samples[name] = [_assert_image(path, name, chip) for path in paths]
        assert (samples[name][1] == _open(one / f"{chip.stem}_{name}.tif")[0]).all()
    spread, raster = _open(folder / f"{chip.stem}_S1GRD_spread.tif")
    np.testing.assert_allclose(spread, np.std(samples["S1GRD"], axis=0), atol=1e-5)
    assert raster.descriptions == ("VV_std", "VH_std")
    assert raster.units == ("dB", "dB")
    assert spread.mean() > 0.1
    spread, raster = _open(folder / f"{chip.stem}_LULC_spread.tif")
    assert raster.descriptions == ("LULC_disagreement",)
    assert set(np.unique(spread.round(3))) <= {np.float32(0), np.float32(0.333), np.float32(0.667)}
    same = (np.stack(samples["LULC"]) == samples["LULC"][0]).all(axis=0)
    assert ((spread == 0) == same).all()
    assert raster.tags["spread"].endswith("of 3 samples")
    assert raster.transform == _open(chip)[1].transform


def test_several_inputs(files: dict[str, Path], run: Any, vocabulary: Path, tmp_path: Path) -> None:
    chip = files["S2L2A"]
    alone = run(chip, tmp_path / "alone", "LULC")
    both = run(chip, tmp_path / "both", "LULC", "--input", f"S1RTC={files['S1RTC']}")
    place = ("--input", "coords=34.1,-3.4", "--tokenizer_file", vocabulary)
    placed = run(chip, tmp_path / "placed", "LULC", *place)
    name = f"{chip.stem}_LULC.tif"
    images = [_assert_image(folder / name, "LULC", chip) for folder in (alone, both, placed)]
    assert not np.array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])
    assert _open(both / name)[1].tags["input"] == f"S2L2A: {chip.name}, S1RTC: {files['S1RTC'].name}"


def test_an_input_on_another_grid_is_warped(files: dict[str, Path], run: Any, tmp_path: Path) -> None:
    chip = files["S2L2A"]
    radar, raster = _open(files["S1RTC"])
    shifted = _write(
        tmp_path / "shifted.tif",
        radar[:, :48],
        files["S1RTC"],
        transform=Affine(*raster.transform[:2], raster.transform.c + 20, *raster.transform[3:6]),
    )
    both = run(chip, tmp_path / "both", "LULC", "--input", f"S1RTC={shifted}")
    _assert_image(both / f"{chip.stem}_LULC.tif", "LULC", chip)


def test_places(files: dict[str, Path], vocabulary: Path, tmp_path: Path, capsys: Any) -> None:
    words = [
        "generate",
        str(files["S2L2A"]),
        "--modality",
        "S2L2A",
        "--to",
        "coords",
        "--model",
        "terramind_v1_tiny",
        "--samples",
        "2",
    ]
    words += ["--pretrained", "false", "--tokenizer_file", str(vocabulary), "--out", str(tmp_path)]
    assert main(words) == 0
    assert "noise" in capsys.readouterr().err
    found = json.loads((tmp_path / f"{files['S2L2A'].stem}_coords.json").read_text())
    shares = [place["probability"] for place in found["positions"]]
    assert len(shares) == 5
    assert shares == sorted(shares, reverse=True)
    assert all(0 < share < 1 for share in shares)
    for place in found["positions"]:
        assert abs(place["longitude"]) <= 180
        assert abs(place["latitude"]) <= 90
        assert place["longitude"] % 0.25 == place["latitude"] % 0.25 == 0
    assert len(found["samples"]) == 2
    assert found["model"] == "terramind_v1_tiny_generate"
    with rasterio.open(files["S2L2A"]) as raster:
        longitude, latitude = raster.lnglat()
    assert found["centre_of_input"] == {
        "longitude": pytest.approx(longitude, abs=1e-4),
        "latitude": pytest.approx(latitude, abs=1e-4),
    }


def test_places_belong_to_one_window(files: dict[str, Path], vocabulary: Path, tmp_path: Path, capsys: Any) -> None:
    chip, out = files["S2L2A"], tmp_path / "out"
    words = [
        "generate",
        chip,
        "--modality",
        "S2L2A",
        "--to",
        "coords,DEM",
        "--model",
        "terramind_v1_tiny",
        "--pretrained",
        "false",
    ]
    words += ["--tokenizer_file", vocabulary, *STEPS]
    command = [str(word) for word in [*words, "--out", out]]
    assert main(command) == 0
    position, image = out / f"{chip.stem}_coords.json", out / f"{chip.stem}_DEM.tif"
    assert _names(out) == {position.name, image.name, f"{chip.stem}_generated.png"}
    found = json.loads(position.read_text())
    assert found["terramind_run"] == _open(image)[1].tags["terramind_run"]
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert main(command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    position.write_text("{}")
    assert main(command) == 0
    again = json.loads(position.read_text())
    assert again.keys() == found.keys()
    assert again["terramind_run"] == found["terramind_run"]
    for first, second in zip(found["positions"], again["positions"], strict=True):
        assert first == pytest.approx(second, rel=1e-4)
    message = refused(capsys, [*words, "--out", tmp_path / "none", "--crop", "48"])
    assert "coords is the location of one window" in message
    assert not (tmp_path / "none").exists()


def test_a_chip_has_the_flags_of_a_scene(files: dict[str, Path], run: Any, tmp_path: Path) -> None:
    chip = files["S2L2A"]
    plain = run(chip, tmp_path / "plain", "S1GRD,LULC")
    fast = run(chip, tmp_path / "fast", "S1GRD,LULC", "--cog", "--precision", "bf16", "--probabilities")
    assert f"{chip.stem}_LULC_probability.tif" in _names(fast)
    with rasterio.open(fast / f"{chip.stem}_S1GRD.tif") as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert "precision bf16-mixed" in file.tags()["windows"]
        assert np.abs(file.read() - _open(plain / f"{chip.stem}_S1GRD.tif")[0]).max() > 0
    # Alone, in a list, and in a window that is larger, a chip becomes the same.
    out = tmp_path / "list"
    other = _write(tmp_path / "other.tif", _open(chip)[0][:, :32], chip)
    listed = run([chip, other], out, "S1GRD,LULC", "--crop", "128")
    for name in ("S1GRD", "LULC"):
        np.testing.assert_array_equal(*(_open(folder / f"{chip.stem}_{name}.tif")[0] for folder in (plain, listed)))
    assert {path.name for path in out.glob("other_*")} == {"other_S1GRD.tif", "other_LULC.tif", "other_generated.png"}


@pytest.mark.parametrize("command", ["reconstruct", "generate"])
def test_what_this_machine_cannot_do(files: dict[str, Path], tmp_path: Path, capsys: Any, command: str) -> None:
    out = tmp_path / "out"
    words = [
        command,
        files["S2L2A"],
        "--modality",
        "S2L2A",
        "--model",
        "terramind_v1_tiny",
        "--pretrained",
        "false",
        "--out",
        out,
    ]
    words += ["--to", "LULC"] if command == "generate" else []
    assert "batch_size must be at least 1, got 0" in refused(capsys, [*words, "--batch_size", "0"])
    assert "devices must be at least 1, got -1" in refused(capsys, [*words, "--devices", "-1"])
    half = [*words, "--accelerator", "cpu", "--precision", "16"]
    assert "precision 16 needs a GPU" in refused(capsys, half)
    count = torch.cuda.device_count()
    message = refused(capsys, [*words, "--accelerator", "cuda", "--devices", str(count + 1)])
    assert f"devices must be at most {count}" in message if count else "this machine has no such device" in message
    assert not out.exists()


def test_reconstruct_scenes_of_several_windows(
    files: dict[str, Path], weights: dict[str, Path], tmp_path: Path
) -> None:
    words = ["reconstruct", str(files["LULC"]), "--modality", "LULC", "--ckpt_path", str(weights["LULC"])]
    assert main([*words, "--out", str(tmp_path / "one"), "--probabilities"]) == 0
    assert main([*words, "--out", str(tmp_path / "four"), "--crop", "48", "--stride", "16"]) == 0
    name = f"{files['LULC'].stem}_LULC_reconstructed"
    one = _assert_image(tmp_path / "one" / f"{name}.tif", "LULC", files["LULC"], steps="10")
    four = _assert_image(tmp_path / "four" / f"{name}.tif", "LULC", files["LULC"], steps="10")
    assert one.shape == four.shape
    assert np.isfinite(_open(tmp_path / "one" / f"{name}_probability.tif")[0]).all()
    assert "crop 48, stride 16" in _open(tmp_path / "four" / f"{name}.tif")[1].tags["windows"]


def test_any_size(files: dict[str, Path], run: Any, tmp_path: Path) -> None:
    values = _open(files["S2L2A"])[0]
    chip = _write(tmp_path / "odd.tif", values[:, :33, :50], files["S2L2A"])
    folder = run(chip, tmp_path / "out", "DEM,LULC")
    for name in ("DEM", "LULC"):
        _assert_image(folder / f"odd_{name}.tif", name, chip)
    dot = _write(tmp_path / "dot.tif", values[:, :1, :1], files["S2L2A"])
    _assert_image(run(dot, tmp_path / "out", "LULC") / "dot_LULC.tif", "LULC", dot)


def test_gaps_are_filled_and_stay_gaps(files: dict[str, Path], run: Any, tmp_path: Path) -> None:
    values = _open(files["S2L2A"])[0].astype(np.float32)
    values[:, :10] = np.nan
    values[3, 20:] = -9999
    chip = _write(tmp_path / "gaps.tif", values, files["S2L2A"], nodata=-9999)
    read = read_chip(chip, MODALITIES["S2L2A"])
    mean = np.array(MODALITIES["S2L2A"].mean, dtype=np.float32)[:, None, None]
    assert (read.values[:, :10] == mean).all()
    assert (read.values[3, 20:] == mean[3]).all()
    assert (read.values[4, 20:] == values[4, 20:]).all()
    assert read.valid[10:].all()
    assert not read.valid[:10].any()
    folder = run(chip, tmp_path / "out", "DEM,LULC", "--samples", "2")
    for name in ("DEM", "DEM_spread"):
        missing = np.isnan(_open(folder / f"gaps_{name}.tif")[0][0])
        assert (missing == ~read.valid).all()
    assert (_open(folder / "gaps_LULC.tif")[0][0][:10] == 0).all()


def test_bands_by_name(files: dict[str, Path], tmp_path: Path) -> None:
    """A file may hold the bands in another order, and others beside them."""
    values, _ = _open(files["S2L1C"])
    entry = MODALITIES["S2L1C"]
    mixed = _write(tmp_path / "mixed.tif", values[::-1], files["S2L1C"])
    with rasterio.open(mixed, "r+") as file:
        file.descriptions = [f"B{name[2:]}" if name.startswith("B0") else name for name in entry.band_names[::-1]]
    assert (read_chip(mixed, entry).values == values).all()
    assert (read_chip(mixed, MODALITIES["S2L2A"]).values == np.delete(values, 10, axis=0)).all()


def test_a_file_without_a_place(files: dict[str, Path], run: Any, tmp_path: Path) -> None:
    values = _open(files["S2L2A"])[0]
    with rasterio.open(
        tmp_path / "plain.tif", "w", driver="GTiff", height=64, width=64, count=12, dtype="uint16"
    ) as raster:
        raster.write(values.astype(np.uint16))
    folder = run(tmp_path / "plain.tif", tmp_path / "out", "LULC")
    header = _open(folder / "plain_LULC.tif")[1]
    assert header.crs is None
    assert header.shape == (64, 64)


@pytest.mark.parametrize(
    ("modality", "change", "guess"),
    [
        ("S2L2A", lambda values: values / 1e4, "not multiplied by 10000"),
        ("S1GRD", lambda values: 10 ** (values / 10), "linear power"),
        ("RGB", lambda values: values / 255, "colours from 0 to 1"),
        ("NDVI", lambda values: values * 100 + 200, "stretched to whole numbers"),
        ("DEM", lambda values: values, ""),
    ],
)
def test_odd_units_are_said(
    files: dict[str, Path], tmp_path: Path, modality: str, change: Any, guess: str, caplog: Any
) -> None:
    values = change(_open(files[modality])[0].astype(np.float32)).astype(np.float32)
    read_chip(_write(tmp_path / "chip.tif", values, files[modality], nodata=None), MODALITIES[modality])
    said = "".join(record.getMessage() for record in caplog.records if record.name == "terramind_plugin")
    assert guess in said
    assert bool(said) == bool(guess)


def test_reconstruct_refuses(files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"

    def told(chip: Path, modality: str, *words: Any) -> str:
        common = ["--out", out, "--pretrained", "false"]
        return refused(capsys, ["reconstruct", chip, "--modality", modality, *common, *words])

    assert "has 13 bands, but DEM has 1: DEM" in told(files["S2L1C"], "DEM")
    assert "has 1 band, but S2L2A has 12: B01, B02" in told(files["DEM"], "S2L2A")
    assert "S2L1C has no image tokenizer. Modalities that have one: S2L2A" in told(files["S2L1C"], "S2L1C")
    assert "Did you mean 'S2L2A'" in told(files["S2L2A"], "S2L2B")
    assert "ambiguous" in told(files["S2L2A"], "S2")
    assert "There is no file" in told(tmp_path / "none.tif", "S2L2A")
    (tmp_path / "text.tif").write_text("no raster")
    assert "cannot be read as a raster" in told(tmp_path / "text.tif", "S2L2A")
    assert "from 1 to 1000" in told(files["S2L2A"], "S2L2A", "--steps", "0")
    assert "seed must be a whole number" in told(files["S2L2A"], "S2L2A", "--seed", "-1")
    assert "Checkpoint not found" in told(files["S2L2A"], "S2L2A", "--ckpt_path", tmp_path / "none.pt")
    ids = _write(tmp_path / "ids.tif", np.full((1, 64, 64), 12, np.uint8), files["LULC"])
    assert "whole numbers from 0 to 9, found 12" in told(ids, "LULC")
    empty = _write(tmp_path / "empty.tif", np.full((2, 64, 64), np.nan, np.float32), files["S1GRD"])
    assert "holds no data" in told(empty, "S1GRD")
    assert not out.exists()
    out.write_text("a file")
    assert "it is a file" in told(files["S2L2A"], "S2L2A")


def test_generate_refuses(files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"

    def told(to: str, *words: Any) -> str:
        common = ["--modality", "S2L2A", "--out", out, "--pretrained", "false", "--model", "terramind_v1_tiny"]
        return refused(capsys, ["generate", files["S2L2A"], *common, "--to", to, *words])

    assert "RGB has no tokens" in told("RGB")
    assert "must be a list of names" in told(",")
    assert "named twice" in told("LULC,landcover")
    assert "S2L2A is input and output" in told("S2L2A")
    assert "no captions" in told("caption")
    assert "samples must be at least 1" in told("LULC", "--samples", "0")
    assert "takes NAME=FILE" in told("LULC", "--input", "S1GRD")
    assert "S2L2A is given twice" in told("LULC", "--input", f"S2L2A={files['S2L2A']}")
    assert "longitude,latitude" in told("LULC", "--input", "coords=here")
    assert "no tokenizer of" in told("LULC", "--tokenizer_ckpt_path", "DEM=x.pt")
    radar = _open(files["S1GRD"])[0]
    nowhere = _write(tmp_path / "nowhere.tif", radar[:, :32], files["S1GRD"], crs=None)
    assert "has the CRS none, but the first input has EPSG" in told("LULC", "--input", f"S1GRD={nowhere}")
    elsewhere = _write(tmp_path / "elsewhere.tif", radar, files["S1GRD"], crs="EPSG:3857")
    assert "does not overlap the first input" in told("LULC", "--input", f"S1GRD={elsewhere}")
    assert not out.exists()


def test_an_input_is_not_overwritten(files: dict[str, Path], run: Any, tmp_path: Path, capsys: Any) -> None:
    chip = _write(tmp_path / "x.tif", _open(files["S2L2A"])[0], files["S2L2A"])
    radar = _write(tmp_path / "x_LULC.tif", _open(files["S1RTC"])[0], files["S1RTC"])
    words = [
        "generate",
        chip,
        "--modality",
        "S2L2A",
        "--to",
        "LULC",
        "--model",
        "terramind_v1_tiny",
        "--pretrained",
        "false",
    ]
    before = radar.read_bytes()
    assert "would be overwritten" in refused(capsys, [*words, "--out", tmp_path, "--input", f"S1RTC={radar}"])
    assert radar.read_bytes() == before


def test_missing_published_weights_name_the_options(files: dict[str, Path], tmp_path: Path, capsys: Any) -> None:
    for words in (["reconstruct"], ["generate", "--to", "LULC"]):
        command = [words[0], str(files["S2L2A"]), "--modality", "S2L2A", "--out", str(tmp_path / "out"), *words[1:]]
        assert main(command) == 2
        assert capsys.readouterr().err.rstrip().endswith("--pretrained false to try it with random weights.")
    assert not (tmp_path / "out").exists()


def test_wrong_truth(files: dict[str, Path], capsys: Any) -> None:
    assert main(["reconstruct", str(files["DEM"]), "--modality", "DEM", "--out", "x", "--pretrained", "maybe"]) == 2
    assert "--pretrained takes true or false, got 'maybe'" in capsys.readouterr().err


def test_global_random_numbers_are_left_alone(files: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    words = ["--modality", "DEM", "--pretrained", "false", "--out", str(tmp_path), *STEPS]
    assert main(["reconstruct", str(files["DEM"]), *words]) == 0
    assert torch.equal(torch.get_rng_state(), state)


def test_spread() -> None:
    images = torch.stack([torch.full((1, 2, 2), value) for value in (1.0, 3.0)])
    assert finish_modality(MODALITIES["DEM"], images)[-1].tolist() == [[[1, 1], [1, 1]]]
    ids = torch.tensor([[[1, 2, 3]], [[1, 2, 4]], [[1, 5, 5]]])
    scores = torch.nn.functional.one_hot(ids, 10).movedim(-1, 1).float()
    spread = finish_modality(MODALITIES["LULC"], scores)[-1]
    np.testing.assert_allclose(spread.numpy(), [[[0, 1 / 3, 2 / 3]]], rtol=1e-6)


def test_picture(files: dict[str, Path], tmp_path: Path) -> None:
    layers = modality_layers(MODALITIES["LULC"], "LULC", samples=6)
    drawn = []
    for layer in layers:
        values = np.ones((1, 64, 64), layer.dtype)
        drawn.append((_write(tmp_path / f"{layer.ending}.tif", values, files["LULC"], nodata=None), layer))
    source = Source(files["DEM"], Expected.of(MODALITIES["DEM"]))
    tags = {"model": "m", "weights": "w", "written": "2026-01-01"}
    figure = draw_scene({"DEM": source}, drawn, tags, {"coords": np.ones(2)}, {"coords": np.ones((5, 2))})
    source.close()
    titles = [axis.get_title() for axis in figure.axes if axis.get_title()]
    samples = ["LULC", "LULC_sample2", "LULC_sample3", "LULC_sample4", "LULC_spread"]
    assert titles[:2] == ["DEM (input)", "coords (input)"]
    assert titles[2:] == [f"{name} (model)" for name in [*samples, "coords"]]
    assert figure.get_suptitle() == f"{files['DEM'].name}: m\nweights: w, 2026-01-01"
    figure.canvas.draw()


@pytest.fixture(scope="module", params=[(96, 80), (64, 70)], ids=str)
def real(request: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return cut files of a real sample of TerraMesh."""
    if not TERRAMESH.is_dir():
        pytest.skip("no TerraMesh samples at ../shared/data/terramesh")
    folder, (height, width) = tmp_path_factory.mktemp("real"), request.param
    cut = {}
    for name in ("S2L2A", "S1RTC", "LULC"):
        source, cut[name] = TERRAMESH / name / SAMPLE, folder / f"{name}.tif"
        window = Window(60, 40, width, height)
        with rasterio.open(source) as raster:
            values, transform = raster.read(window=window), raster.window_transform(window)
        _write(cut[name], values, source, transform=transform)
    return cut


def test_real_chip(real: dict[str, Path], weights: dict[str, Path], run: Any, tmp_path: Path, caplog: Any) -> None:
    for name in ("S2L2A", "LULC"):
        words = ["--modality", name, "--ckpt_path", str(weights[name]), "--out", str(tmp_path), *STEPS]
        assert main(["reconstruct", str(real[name]), *words]) == 0
        _assert_image(tmp_path / f"{name}_{name}_reconstructed.tif", name, real[name])
    folder = run(real["S2L2A"], tmp_path, "S1GRD,DEM,LULC", "--input", f"S1RTC={real['S1RTC']}", "--samples", "2")
    for name in ("S1GRD", "DEM", "LULC"):
        values = _assert_image(folder / f"S2L2A_{name}.tif", name, real["S2L2A"])
        assert np.isfinite(values).all()
    assert (folder / "S2L2A_generated.png").is_file()
    assert not caplog.records
