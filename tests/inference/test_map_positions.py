"""Maps of tasks that take the location of a window as an input, or two images of one modality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rasterio.transform import Affine

from terramind_plugin.cli import main
from terramind_plugin.raster.georeference import find_centre
from tests.inference.conftest import make_task, read_raster, write_modality

NANO = {"model_args.backbone": "terramind_sim_nano", "model_args.backbone_out_indices": [1, 2, 4, 5]}


def radar(entry):
    return {
        **NANO,
        "data.modalities": ["S1GRD", entry],
        "data.data_root": {"S1GRD": "nowhere"},
        "data.image_grep": {"S1GRD": "*"},
        "model_args.backbone_modalities": ["S1GRD", entry],
        "model_args.necks": [{"name": "terramind_pyramid", "patch_size": 8}],
    }


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    return make_task(tmp_path_factory.mktemp("placed"), radar("coords"))


def run(task, out, *scenes, crop=64):
    config, checkpoint = task
    words = [word for scene in scenes for word in ("--scene", scene)]
    sizes = ["--crop", crop, "--stride", crop, "--margin", 0, "--batch_size", 2]
    common = ["map", "-c", config, "--ckpt_path", checkpoint, *words, "--out", out, "--accelerator", "cpu", *sizes]
    return main([str(word) for word in [*common, "--probabilities"]])


def test_each_window_has_its_own_location(placed, tmp_path):
    """A scene of two windows with pixels of 10 km: the windows are several degrees from each other."""
    from terramind_plugin.integration.lightning_cli import make_cli
    from terramind_plugin.model.checkpoints import load_into, read_file

    place = Affine(10_000, 0, 100_000, 0, -10_000, 5_000_000)
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (64, 128), transform=place)
    assert run(placed, tmp_path / "out", scene) == 0
    cli = make_cli(["--config", str(placed[0])])
    load_into(cli.model, read_file(placed[1])[1], placed[1], "the task")
    model = cli.model.eval()
    means, stds = (np.array(x["S1GRD"])[:, None, None] for x in (cli.datamodule.band_means, cli.datamodule.band_stds))
    image = torch.from_numpy(((read_raster(scene) - means) / stds).astype(np.float32))[None]
    got = read_raster(tmp_path / "out" / "scene_probabilities.tif")
    centres = []
    for column in (0, 64):
        part = tmp_path / f"part_{column}.tif"
        write_modality(part, "S1GRD", (64, 64), transform=place * Affine.translation(column, 0))
        centres.append(find_centre(part))
        x = {"S1GRD": image[..., column : column + 64], "coords": torch.tensor([centres[-1]])}
        with torch.no_grad():
            want = model(x).output.softmax(dim=1)[0].numpy()
        assert np.allclose(got[:, :, column : column + 64], want, atol=1e-4)
    assert abs(centres[0][0] - centres[1][0]) > 5


def test_a_scene_without_a_georeference_is_named(placed, tmp_path, capsys):
    scene = write_modality(tmp_path / "scene.tif", "S1GRD", (64, 64), crs=None, transform=Affine.identity())
    assert run(placed, tmp_path / "out", scene) == 2
    assert "scene.tif has no georeference, which the model's input coords comes from." in capsys.readouterr().err


def test_two_images_of_one_modality(tmp_path):
    changes = {
        **radar("coords"),
        "data.modalities": [{"before": "S1GRD"}, {"after": "S1GRD"}],
        "data.data_root": {"before": "nowhere", "after": "nowhere"},
        "data.image_grep": {"before": "*", "after": "*"},
        "model_args.backbone_modalities": [{"before": "S1GRD"}, {"after": "S1GRD"}],
        "model_args.backbone_merge_method": "concat",
    }
    task = make_task(tmp_path, changes)
    first = write_modality(tmp_path / "first.tif", "S1GRD", (64, 96))
    second = write_modality(tmp_path / "second.tif", "S1GRD", (64, 96), (slice(0, 32), slice(0, 96)))
    assert run(task, tmp_path / "out", f"before={first}", f"after={second}") == 0
    assert run(task, tmp_path / "turned", f"before={second}", f"after={first}") == 0
    maps = [
        read_raster(tmp_path / "out" / "first_probabilities.tif"),
        read_raster(tmp_path / "turned" / "second_probabilities.tif"),
    ]
    assert not np.allclose(*maps)


def test_positions_of_tiles(images):
    from terramind_plugin.builders import build_backbone

    model = build_backbone("terramind_sim_nano", ["S1GRD", "coords"], pretrained=True).eval()
    place = torch.tensor([[11.5, 48.1], [-120.2, -33.9]])
    x = images(["S1GRD"], 2)
    with torch.no_grad():
        whole = model({**x, "coords": place})[-1]
        assert torch.equal(model({**x, "coords": place[:, :, None, None].expand(-1, -1, 64, 64)})[-1], whole)
