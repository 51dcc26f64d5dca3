"""What only a GPU can show: graphs that are captured, waits, and the same results as on a CPU.

Needs torch, timm, einops, diffusers and Lightning, for one test rasterio: `pytest tests/gpu` in a checkout.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bench.gpu.setting import precision
from terramind_plugin.backbones.encoder import TerraMindBackbone
from terramind_plugin.backbones.lora import add_lora, read_settings
from terramind_plugin.backbones.network import compile_network
from terramind_plugin.backbones.tim import TerraMindTiM
from terramind_plugin.builders import build_image_tokenizer
from terramind_plugin.generation.sampling import find_nucleus, sample_ids
from terramind_plugin.inference.noise import SceneNoise
from terramind_plugin.model.compiled import find_call
from terramind_plugin.model.variants import VARIANTS
from tests.conftest import draw_weights

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.usefixtures("fresh_graphs"),
]
PAIR = ("S2L2A", "S1GRD")
TINY = VARIANTS["terramind_v1_tiny"]
DEVICE = "cuda"


@contextmanager
def no_waits() -> Iterator[None]:
    """Raise an error where Python waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class Segmenter(nn.Module):
    """A backbone and one layer, as a task's model has them."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.head = nn.Linear(TINY.dim, 2)

    def forward(self, x: Any, **named: Any) -> Tensor:
        scores: Tensor = self.head(self.backbone(x, **named)[-1])
        return scores


def to_gpu(images: Any) -> dict[str, Tensor]:
    return {name: image.to(DEVICE) for name, image in images.items()}


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "a mask": {},
    "checkpointing": {"activation_checkpointing": True},
    "adapters, accumulated": {},
    "bfloat16": {},
}


@pytest.mark.parametrize("case", CASES)
def test_training_with_graphs_gives_the_losses_without(
    case: str, images: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Ten batches of Lightning's trainer, of which every fifth is smaller."""
    lightning = pytest.importorskip("lightning.pytorch")
    from terramind_plugin.integration.compilation import CompiledModel

    mask = {"modality_mask": {"S1GRD": torch.tensor([True, False, True, True])}} if case == "a mask" else {}
    batches = [(images(PAIR, 2 if number % 5 == 4 else 4, 64, 64, seed=number), mask) for number in range(10)]

    class Task(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model
            self.losses: list[Tensor] = []

        def training_step(self, batch: Any, _: int) -> Tensor:
            x, named = batch
            size = len(x["S2L2A"])
            more = {key: {name: one[:size] for name, one in value.items()} for key, value in named.items()}
            loss: Tensor = self.model(x, **more).float().square().mean()
            self.losses.append(loss.detach().clone())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=1e-3)

    torch.manual_seed(0)
    backbone = draw_weights(TerraMindBackbone(replace(TINY, depth=2), list(PAIR), **CASES[case]))
    if case.startswith("adapters"):
        pytest.importorskip("peft")
        add_lora(backbone, read_settings({"rank": 2, "target": "all"}))
    start = Segmenter(backbone)
    runs: dict[str, list[float]] = {}
    for mode in ("off", "graphs"):
        task = Task(copy.deepcopy(start))
        trainer = lightning.Trainer(
            accelerator="gpu", devices=1, max_epochs=2, precision="bf16-mixed" if case == "bfloat16" else "32-true",
            callbacks=[CompiledModel(mode)], logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path,
            accumulate_grad_batches=2 if "accumulated" in case else 1,
        )  # fmt: skip
        trainer.fit(task, torch.utils.data.DataLoader(batches, batch_size=None))
        runs[mode] = [float(loss) for loss in task.losses]
        call = find_call(task.model)
        assert (call is not None) == (mode == "graphs")
        assert call is None or call.calls == 20
        assert call is None or call.failure is None, call.failure
    assert len(runs["off"]) == 20
    assert runs["off"][10] < runs["off"][0], "the second epoch begins with the first one's first batch"
    assert runs["graphs"] == pytest.approx(runs["off"], rel=2e-2 if case == "bfloat16" else 1e-4)


def test_a_thinking_step_with_graphs_waits_for_nothing(images: Callable[..., Any]) -> None:
    """The fourth step, when graphs are captured; ids of a sample are those that it has by itself."""
    model = Segmenter(draw_weights(TerraMindTiM(replace(TINY, depth=1, decoder_depth=1), list(PAIR))))
    model = model.to(DEVICE).train()
    compiled = copy.deepcopy(model)
    compile_network(compiled, "graphs")
    x = to_gpu(images(PAIR, 4))

    def step(one: Segmenter, inputs: dict[str, Tensor]) -> None:
        one(inputs).square().mean().backward()
        one.zero_grad(set_to_none=True)

    for _ in range(3):
        step(model, x)
        step(compiled, x)
        other = compiled.backbone.generated_tokens
        agree = [(ids == other[name]).float().mean() for name, ids in model.backbone.generated_tokens.items()]
        assert agree
        assert min(map(float, agree)) > 0.98, "rounding may turn a few ids, no more"
    for one in (model, compiled):
        with no_waits():
            step(one, x)
    with torch.no_grad():
        compiled.eval()(x)
        model.eval()({name: image[2:3] for name, image in x.items()})
    whole, alone = (one.backbone.generated_tokens["LULC"] for one in (compiled, model))
    assert (alone[0] == whole[2]).float().mean() > 0.98


@pytest.mark.parametrize("top_p", [0.3, 0.8, 0.95])
def test_ids_are_drawn_as_on_a_cpu(top_p: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(2, 400, 4375, generator=generator)
    logits[0, :50] = logits[0, :50].round()  # many ties
    uniform = torch.rand(2, 400, 20, generator=generator)
    want = sample_ids(logits, uniform, top_p=top_p)
    on_gpu, numbers = logits.to(DEVICE), uniform.to(DEVICE)
    with no_waits():
        got = sample_ids(on_gpu, numbers, top_p=top_p)
        nucleus = find_nucleus(on_gpu.softmax(dim=-1), top_p)
    assert (got.cpu() == want).float().mean() > 0.998
    differs = (nucleus.cpu() != find_nucleus(logits.softmax(dim=-1), top_p)).sum(dim=-1)
    assert (differs > 0).float().mean() < 0.02, "sums in another order move the edge of few nuclei"
    assert differs[1].max() <= 1


def test_noise_of_a_scene_is_that_of_a_cpu() -> None:
    corners = [(0, 0), (160, 96)]
    one = SceneNoise(3, corners, (224, 224), 16)
    other = SceneNoise(3, corners, (224, 224), 16, device=torch.device(DEVICE))
    for _ in range(2):
        torch.testing.assert_close(other.normal(2, 224, 224).cpu(), one.normal(2, 224, 224), atol=2e-6, rtol=0)
    assert torch.equal(other.uniform(196, 3).cpu(), one.uniform(196, 3))
    assert torch.equal(other.order(196).cpu(), one.order(196))


def test_images_of_a_decoder_with_graphs_stay_and_are_those_without() -> None:
    decoder = draw_weights(build_image_tokenizer("terramind_v1_tokenizer_dem", encoder=False)).to(DEVICE).eval()
    decoder.requires_grad_(False)
    plain, graphs = copy.deepcopy(decoder).for_inference("off"), decoder.for_inference("graphs")
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 1, 64, 64, generator=generator).to(DEVICE)
    tokens = torch.randint(0, 1000, (2, 2, 4, 4), generator=generator).to(DEVICE)

    def decode(model: Any, number: int) -> Tensor:
        image: Tensor = model.decode_tokens(tokens[number], timesteps=4, noise=noise, checked=True)
        return image

    with torch.inference_mode(), precision("highest"):
        first = decode(graphs, 0)
        kept = first.clone()
        for number in (1, 0, 1, 0):
            torch.testing.assert_close(decode(graphs, number), decode(plain, number), atol=1e-3, rtol=1e-3)
        assert torch.equal(first, kept), "a later call has overwritten it"
        with no_waits():
            decode(graphs, 1)


@pytest.mark.parametrize("compiled", ["off", "graphs"])
def test_a_map_is_that_of_a_cpu(compiled: str, tmp_path: Path) -> None:
    """In float32; classes of few pixels may differ, where two are equally likely."""
    rasterio = pytest.importorskip("rasterio")
    from bench.gpu.scene import MODALITY, SceneModel
    from bench.scene_runs import write_scene
    from terramind_plugin.inference.options import Options
    from terramind_plugin.inference.planning import plan_jobs
    from terramind_plugin.inference.runner import run_jobs
    from terramind_plugin.model.modalities import MODALITIES
    from terramind_plugin.raster.reader import Expected

    scene = write_scene(tmp_path / "scene.tif", 300)
    model = SceneModel("tiny").eval()
    draw_weights(model.network.head)
    maps = {}
    for device in ("cpu", "cuda"):
        options = Options(tmp_path / device, crop=64, stride=48, margin=0, batch_size=8, accelerator=device,
                          compile=compiled)  # fmt: skip
        expected = {MODALITY: Expected.of(MODALITIES[MODALITY])}
        (job,) = plan_jobs([{MODALITY: scene}], expected, options, 16)
        job.decide("map", model.layers, {"model": "tiny", "weights": "random"}, options)
        run_jobs(model, [job], options)
        (path,) = (tmp_path / device).glob("*.tif")
        with rasterio.open(path) as file:
            maps[device] = file.read(1)
    assert len(np.unique(maps["cpu"])) > 3
    assert (maps["cpu"] == maps["cuda"]).mean() > 0.999
