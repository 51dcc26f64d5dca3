"""The model compiles into one graph and exports, with the same results."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from terramind_plugin.backbones.lora import add_lora, read_settings
from terramind_plugin.backbones.network import compile_network
from terramind_plugin.backbones.tim import TerraMindTiM
from terramind_plugin.model.variants import VARIANTS
from tests.conftest import draw_weights
from tests.reads import Reads

pytestmark = pytest.mark.usefixtures("fresh_graphs")
PAIR = ("S2L2A", "S1GRD")
MASK = {"S1GRD": torch.tensor([True, False])}

WHOLE_GRAPH = pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch 2.6 makes no `LayerList` within a graph")
"""For models that return chosen layers: an older torch runs these lines outside of the graph, or refuses."""


def assert_close(got, want):
    assert type(got) is type(want)
    for one, other in zip(got, want, strict=True):
        assert torch.allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("masked", "chosen"),
    [pytest.param(False, [0, 1], marks=WHOLE_GRAPH), (True, None)],
    ids=["all, chosen layers", "masked, every layer"],
)
@torch.no_grad()
def test_compile(tiny, images, masked, chosen):
    model = tiny(PAIR, depth=2, out_indices=chosen)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    mask = MASK if masked else None
    for size in [(64, 64), (96, 64), (64, 64)]:
        x = images(PAIR, 2, *size)
        assert_close(compiled(x, modality_mask=mask), model(x, modality_mask=mask))


@pytest.mark.parametrize("method", ["max", "concat", "none"])
@torch.no_grad()
def test_compile_merges(tiny, images, method):
    model = tiny(PAIR, depth=2, merge_method=method, num_register_tokens=2)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = images(PAIR)
    assert_close(compiled(x, modality_mask=MASK), model(x, modality_mask=MASK))


def test_compile_gradients(tiny, images):
    model = tiny(PAIR, depth=2, modality_drop_rate=0.5, drop_path_rate=0.2)
    x = images(PAIR)
    model(x)[-1].square().sum().backward()
    want = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(x)[-1].square().sum().backward()
    for parameter, grad in zip(model.parameters(), want, strict=True):
        assert torch.allclose(parameter.grad, grad, rtol=1e-4, atol=1e-5)


def test_compile_training(tiny, images):
    model = tiny(PAIR, depth=2, modality_drop_rate=0.5, drop_path_rate=0.2, activation_checkpointing=True).train()
    out = torch.compile(model, fullgraph=True, backend="aot_eager")(images(PAIR))[-1]
    out.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("strict", "masked"),
    [(False, False), pytest.param(True, True, marks=WHOLE_GRAPH)],
    ids=["traced, all", "strict, masked"],
)
@torch.no_grad()
def test_export(tiny, images, strict, masked):
    model = tiny(PAIR, depth=3, out_indices=[0, 2])
    x = images(PAIR, 2, 96, 64)
    kwargs = {"modality_mask": MASK} if masked else {}
    exported = torch.export.export(model, (x,), kwargs, strict=strict).module()
    other = {name: image + 1 for name, image in x.items()}
    got, want = exported(other, **kwargs), model(other, **kwargs)
    assert_close(got, want)
    assert torch.allclose(got[2], want[2], atol=1e-5)


@torch.no_grad()
def test_exported_file(tiny, images, tmp_path):
    model = tiny(PAIR, depth=2, out_indices=[0, 1])
    x = images(PAIR)
    torch.export.save(torch.export.export(model, (x,), strict=False), tmp_path / "model.pt2")
    assert_close(torch.export.load(tmp_path / "model.pt2").module()(x), model(x))


class Segmenter(nn.Module):
    """A model around a backbone, as TerraTorch's factory makes them."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.variant.dim, 2)

    def forward(self, x, **named):
        return self.head(self.encoder(x, **named)[-1])


@pytest.fixture(scope="module")
def small_tim():
    """Return a TiM model of one block around which a head is put, with drawn weights."""

    def make(**kwargs):
        variant = replace(VARIANTS["terramind_v1_tiny"], depth=1, decoder_depth=1)
        return Segmenter(draw_weights(TerraMindTiM(variant, list(PAIR), **kwargs)))

    return make


@pytest.mark.parametrize("mode", ["training", pytest.param("evaluation", marks=pytest.mark.slow)])
def test_thinking_is_four_graphs_without_a_break(small_tim, images, mode):
    """Graphs: encoder and head of the model; encoder, and decoder with drawing, of the generator."""
    plain = small_tim(tim_modalities=["LULC"]).train(mode == "training")
    compiled = copy.deepcopy(plain)
    compile_network(compiled, "default", backend="aot_eager")
    with torch.set_grad_enabled(mode == "training"):
        for step in range(4):
            x = images(PAIR, seed=step)
            got, want = compiled(x), plain(x)
            assert torch.equal(compiled.encoder.generated_tokens["LULC"], plain.encoder.generated_tokens["LULC"])
            assert torch.allclose(got, want, atol=1e-5)
            if step == 0:
                made, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    assert compiled.encoder.step == plain.encoder.step
    assert breaks == 0, dict(counters["graph_break"])
    assert made == 4
    assert counters["stats"]["unique_graphs"] == made, "compiled again"


def test_a_thinking_backbone_by_itself_is_three_graphs(small_tim, images):
    backbone = small_tim(tim_modalities=["LULC"]).encoder.eval()
    assert compile_network(backbone, "default", backend="eager") == [backbone]
    with torch.no_grad():
        backbone(images(PAIR))
    assert counters["stats"]["unique_graphs"] == 3
    assert not counters["graph_break"]


CASES = {
    "all inputs": {},
    "a mask": {},
    "random modalities": {"modality_drop_rate": 0.5, "drop_path_rate": 0.2, "drop_rate": 0.1},
    "checkpointing": {"activation_checkpointing": True},
    "layers and registers": {"out_indices": [0], "num_register_tokens": 2},
    "adapters": {},
    "frozen": {},
    "bfloat16": {},
}


ALWAYS = ("all inputs", "a mask", "checkpointing")


@pytest.mark.parametrize("case", [pytest.param(one, marks=[] if one in ALWAYS else pytest.mark.slow) for one in CASES])
def test_training_and_evaluation_are_a_graph_each_whatever_the_last_batch(tiny, images, case):
    plain = Segmenter(tiny(PAIR, depth=1, **CASES[case]))
    if case == "adapters":
        add_lora(plain.encoder, read_settings({"rank": 2, "target": "all"}))
    if case == "frozen":
        plain.encoder.freeze()
    compiled = copy.deepcopy(plain)
    compile_network(compiled, "default", backend="eager")

    def step(model, seed, batch, training):
        torch.manual_seed(seed)
        model.train(training)
        x = images(PAIR, batch, 32, 32, seed=seed)
        named = {}
        if case == "a mask":
            named["modality_mask"] = {"S1GRD": torch.arange(batch) > 0}
        autocast = torch.autocast("cpu", torch.bfloat16, enabled=case == "bfloat16")
        with torch.set_grad_enabled(training), autocast:
            out = model(x, **named)
        if training:
            out.float().square().mean().backward()
        return out

    for epoch in range(2):
        for number, batch in enumerate((3, 3, 2)):
            for training in (True, False):
                got, want = (step(model, 10 * epoch + number, batch, training) for model in (compiled, plain))
                torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    for one, other in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-3)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]


def test_no_step_of_a_thinking_model_waits_for_the_device(small_tim, images, monkeypatch):
    """What a CPU may read because it is there, a GPU would have to be waited for."""
    monkeypatch.setattr("terramind_plugin.generation.sampling.may_read", lambda device: False)
    model = small_tim(tim_modalities=["LULC", "NDVI"], modality_drop_rate=0.5).train()
    x = images(PAIR, 3)
    mask = {"S1GRD": torch.tensor([True, False, True])}
    with Reads() as reads:
        for _ in range(2):
            model(x, modality_mask=mask).square().sum().backward()
    assert reads.names == []


def test_every_trainable_weight_gets_a_gradient_in_distributed_training(tiny, images, monkeypatch):
    monkeypatch.setattr("terramind_plugin.backbones.encoder.is_distributed", lambda: True)
    for options in ({"out_indices": [0, 1]}, {"merge_method": "concat"}, {"num_register_tokens": 1}):
        model = tiny((*PAIR, "DEM"), depth=3, **options)
        model.unfreeze()
        sum(layer.sum() for layer in model(images(PAIR))).backward()
        for name, parameter in model.named_parameters():
            assert parameter.requires_grad == (parameter.grad is not None), name
            if "dem" in name or ("missing_mod" in name and "merge_method" not in options):
                assert not parameter.grad.any(), name
    plain = tiny(PAIR, depth=3, out_indices=[0, 1])
    behind = [name for name, parameter in plain.named_parameters() if not parameter.requires_grad]
    assert behind
    assert all(name.startswith(("encoder.2.", "encoder_norm.")) for name in behind)
