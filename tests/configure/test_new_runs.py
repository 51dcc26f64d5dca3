"""What `terramind new` writes passes `terramind check` and trains."""

from __future__ import annotations

import pytest

from terramind_plugin.cli import main
from tests.configure.conftest import LAYOUTS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_the_configuration_is_sound_and_trains(layout, chips, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "--data", "data", *layout(chips, tmp_path / "data")]) == 0
    assert main(["check", "-c", "data.yaml"]) == 0
    assert "data.yaml: 0 errors" in capsys.readouterr().out
    words = ["--trainer.fast_dev_run=true", "--trainer.accelerator=cpu", "--data.init_args.num_workers=0"]
    assert main(["fit", "-c", "data.yaml", *words]) == 0


def test_the_layout_of_sen1floods11_is_sound_and_trains(simulated, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--task", "segmentation", "--modalities", "S2L2A,S1RTC,DEM,LULC,coords", "--data", str(simulated)]
    assert main(["new", *words, "--out", "floods.yaml"]) == 0
    assert main(["check", "-c", "floods.yaml"]) == 0
    assert "floods.yaml: 0 errors" in capsys.readouterr().out
    assert main(["fit", "-c", "floods.yaml", "--trainer.fast_dev_run=true", "--data.init_args.num_workers=0"]) == 0
