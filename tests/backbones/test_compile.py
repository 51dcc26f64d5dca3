"""The model compiles into one graph and exports, with the same results."""

import pytest
import torch

PAIR = ("S2L2A", "S1GRD")
MASK = {"S1GRD": torch.tensor([True, False])}

WHOLE_GRAPH = pytest.mark.skipif(torch.__version__ < (2, 7), reason="torch 2.6 makes no `LayerList` within a graph")
"""For models that return chosen layers: an older torch runs these lines outside of the graph, or refuses."""


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


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
