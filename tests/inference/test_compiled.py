"""The models of windows run as few graphs, in batches of one size, and give what they give without."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from terramind_plugin.builders import build_generator
from terramind_plugin.inference.embedder import build_embedder
from terramind_plugin.inference.makers import SceneGenerator
from terramind_plugin.inference.options import MANY_BATCHES, Options
from terramind_plugin.inference.stream import prepare_model, run_windows
from terramind_plugin.model.modalities import MODALITIES
from terramind_plugin.model.variants import VARIANTS
from tests.conftest import count_graphs
from tests.generation.conftest import scatter_weights

pytestmark = pytest.mark.usefixtures("fresh_graphs")
CPU = torch.device("cpu")
CORNERS = [(0, 0), (0, 48), (32, 16)]


def _windows(name: str, count: int, seed: int = 0) -> Tensor:
    entry = MODALITIES[name]
    noise = torch.randn(count, len(entry.bands), 64, 64, generator=torch.Generator().manual_seed(seed))
    mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (entry.mean, entry.std))
    return (mean + 0.5 * std * noise).clamp(*entry.valid_range)


@torch.no_grad()
def _assert_graphs(model: nn.Module, name: str, graphs: int) -> None:
    """Assert that three batches, of which the last one is smaller, take some graphs, and no more from then on."""
    batches = [(_windows(name, count, seed), CORNERS[:count]) for seed, count in enumerate((3, 3, 2))]
    expected = [model({name: images}, corners) for images, corners in batches]
    assert count_graphs() == (0, 0)
    prepare_model(model, CPU, "default")
    for _ in range(2):
        for (images, corners), want in zip(batches, expected, strict=True):
            got = run_windows(model, {name: images}, corners, 3)  # type: ignore[arg-type]
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * max(1.0, float(want.abs().max())))
        assert count_graphs() == (graphs, 0)


@pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch 2.6 breaks the graph where layers are chosen")
def test_an_embedder_is_one_graph(traced: None) -> None:
    model, _ = build_embedder(VARIANTS["terramind_v1_tiny"], None, ["S1GRD"], pretrained=False)
    _assert_graphs(model, "S1GRD", 1)


def test_a_task_is_one_graph(traced: None, radar_task: tuple[Path, Path]) -> None:
    from terramind_plugin.inference.segmentation import SceneTask, for_inference, read_data_module
    from terramind_plugin.integration.lightning_cli import make_cli

    cli = make_cli(["--config", str(radar_task[0])])
    _, scales = read_data_module(cli.datamodule, cli.model)
    _assert_graphs(SceneTask(for_inference(cli.model), scales, False, (64, 64)), "S1GRD", 1)


@pytest.mark.slow
def test_a_generator_is_a_graph_for_each_part(traced: None, small_tokenizers: None) -> None:
    """Encoder and decoder of tokens for the first modality and the second, which reads the first; two decoders."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inner = build_generator("terramind_v1_tiny", ["S2L2A"], ["S1GRD", "LULC"], standardize=True, timesteps=2)
        model = SceneGenerator(scatter_weights(inner), seed=1)
    _assert_graphs(model, "S2L2A", 6)


class Means(nn.Module):
    channels = 1

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, images: Mapping[str, Tensor], corners: Any) -> Tensor:
        assert len(corners) == len(images["x"])
        self.sizes.append(len(corners))
        return images["x"].mean(dim=1, keepdim=True)


def test_batches_are_filled_up() -> None:
    model: Any = Means()
    images = {"x": torch.randn(2, 3, 4, 4)}
    for least in (0, 2, 5):
        assert torch.equal(run_windows(model, images, [(0, 0), (0, 4)], least), images["x"].mean(dim=1, keepdim=True))
    assert model.sizes == [2, 2, 5]


def test_when_a_model_is_compiled(tmp_path: Path) -> None:
    cases = {("graphs", "cpu"): False, ("default", "cpu"): True, ("off", "cpu"): False}
    for (mode, accelerator), expected in cases.items():
        assert Options(tmp_path, compile=mode, accelerator=accelerator).compiles() is expected  # type: ignore[arg-type]


def test_few_batches_are_not_worth_compiling_for(tmp_path: Path) -> None:
    counts = (1, MANY_BATCHES - 1, MANY_BATCHES)
    assert [Options(tmp_path).for_batches(count).compile for count in counts] == ["off", "off", "graphs"]
    for mode in ("graphs", "default", "off"):
        assert Options(tmp_path, compile=mode).for_batches(1).compile == mode  # type: ignore[arg-type]
