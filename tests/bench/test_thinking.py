"""Land cover from radar, on a few simulated chips with the small model."""

from __future__ import annotations

import pytest

from bench.thinking import measure_thoughts
from terramind_plugin.simulation.dataset import simulate


@pytest.mark.slow
def test_table_and_picture(tmp_path, capsys):
    root = simulate(tmp_path / "cover", chips=16, size=64, task="flooded_cover").root
    measure_thoughts(root, tmp_path)
    rows = (tmp_path / "generated_cover.md").read_text().splitlines()[2:]
    scores = {name.strip(): list(map(float, numbers)) for _, name, *numbers, _ in (row.split("|") for row in rows)}
    assert capsys.readouterr().out.endswith(f"{tmp_path / 'generated_cover.png'}\n")
    assert (tmp_path / "generated_cover.png").stat().st_size > 20_000
    likeliest, random, constant = (
        scores[name] for name in ("likeliest tokens", "random weights", "most frequent class")
    )
    assert likeliest[1] > 2 * constant[1]
    assert likeliest[1] > 2 * random[1]
    assert likeliest[0] > constant[0]
