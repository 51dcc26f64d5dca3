"""Attention against torch's own, layers against TerraTorch's with the same weights."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from terramind_plugin.model import layers
from terramind_plugin.model.layers import Attention, Block, GatedMlp, LayerNorm, Mlp, attend, swiglu

HALF = [torch.bfloat16, torch.float16]
BATCH, HEADS, QUERIES, KEYS, DIM = 2, 3, 5, 7, 16


def heads(*shape, dtype=torch.float32, seed=0):
    """Return queries, keys and values; shape is [B, heads, N, M, dim]."""
    batch, count, queries, keys, dim = shape or (BATCH, HEADS, QUERIES, KEYS, DIM)
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, length, count, dim, generator=generator).to(dtype).transpose(1, 2)
        for length in (queries, keys, keys)
    ]


def masks():
    """Return one mask of each shape that a caller may pass."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand(BATCH, HEADS, QUERIES, KEYS, generator=generator) > 0.5
    mask[..., 0] = True
    return {"none": None, "full": mask, "keys": mask[:, :1, :1], "heads": mask[:, :1], "one": mask[0, 0]}


def plain(q, k, v, mask=None):
    """Return attention in double precision, by its definition."""
    q, k, v = q.double(), k.double(), v.double()
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


def gradients(function, inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    return torch.autograd.grad((out * weights).sum(), inputs)


@pytest.fixture(params=[False, True], ids=["no amx", "amx"])
def amx(request, monkeypatch):
    monkeypatch.setattr(layers, "HAS_AMX", request.param)
    return request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask", masks().values(), ids=masks())
def test_attend_is_torchs_attention(dtype, mask):
    q, k, v = heads(dtype=dtype)
    assert torch.equal(attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    assert (attend(q, k, v, mask) - plain(q, k, v, mask)).abs().max() < (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("mask", masks().values(), ids=masks())
@pytest.mark.parametrize("training", [False, True], ids=["inference", "training"])
@pytest.mark.usefixtures("amx")
def test_attend_in_half_precision(dtype, mask, training):
    q, k, v = heads(dtype=dtype)
    out = attend(q.requires_grad_(training), k, v, mask).detach()
    assert out.dtype == dtype
    assert (out - plain(q, k, v, mask)).abs().max() < 0.03


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("mask", masks().values(), ids=masks())
def test_gradients_in_half_precision(dtype, mask):
    inputs = heads(dtype=dtype)
    want = gradients(partial(plain, mask=mask), [x.double() for x in inputs])
    for got, exact in zip(gradients(partial(attend, mask=mask), inputs), want, strict=True):
        assert got.dtype == dtype
        assert (got - exact).abs().max() < 0.03 * exact.abs().max()


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(1, 3),
    count=st.integers(1, 4),
    queries=st.integers(1, 20),
    keys=st.integers(1, 20),
    dim=st.sampled_from([8, 32, 64]),
    masked=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 999),
)
def test_any_shape(batch, count, queries, keys, dim, masked, training, seed):
    q, k, v = heads(batch, count, queries, keys, dim, dtype=torch.bfloat16, seed=seed)
    mask = torch.rand(batch, 1, 1, keys, generator=torch.Generator().manual_seed(seed)) > 0.5 if masked else None
    out = attend(q.requires_grad_(training), k, v, mask).detach()
    assert out.shape == (batch, count, queries, dim)
    assert (out - plain(q, k, v, mask)).abs().max() < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
@pytest.mark.usefixtures("amx")
def test_query_without_keys_gives_zero(dtype):
    q, k, v = heads(dtype=dtype)
    mask = torch.ones(BATCH, 1, QUERIES, KEYS, dtype=torch.bool)
    mask[0, :, 1] = False
    out = attend(q, k, v, mask)
    assert not out[0, :, 1].any()
    assert out[1].abs().min() > 0
    for grad in gradients(partial(attend, mask=mask), [q, k, v]):
        assert grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_masked_keys_have_no_influence(dtype):
    q, k, v = heads(dtype=dtype)
    mask = (torch.arange(KEYS) < 4)[None]
    other = [torch.where(mask.T, x, torch.full_like(x, 50.0)) for x in (k, v)]
    difference = attend(q, k, v, mask) - attend(q, *other, mask)
    assert difference.abs().max() < (1e-5 if dtype == torch.float32 else 0.03)


def test_many_keys_leave_half_precision_to_torch(monkeypatch):
    monkeypatch.setattr(layers, "MANY_KEYS", KEYS - 1)
    q, k, v = heads(dtype=torch.bfloat16)
    assert torch.equal(attend(q.requires_grad_(), k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_the_mean(dtype):
    q, k, v = heads(64, 8, QUERIES, KEYS, DIM, dtype=dtype)
    q.requires_grad_()
    out, exact = attend(q, k, v, dropout=0.5), attend(q, k, v)
    assert (out - exact).abs().max() > 0.1
    assert (out - exact).float().mean().abs() < 0.02


@pytest.mark.parametrize("autocast", [False, True], ids=["single", "bf16"])
def test_dropout_is_for_training_only(autocast):
    layer = Attention(48, 3, bias=True, attn_drop=0.5, proj_drop=0.5)
    x = torch.randn(2, 9, 48)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert not torch.equal(layer(x), layer(x))
        layer.eval()
        assert torch.equal(layer(x), layer(x))


def test_attention_dropout_alone_is_for_training_only():
    layer = Attention(48, 3, bias=True, attn_drop=0.5)
    x = torch.randn(2, 9, 48)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


class Written(TorchDispatchMode):
    """Names of the operations that write a result of some size."""

    def __init__(self, numel):
        super().__init__()
        self.numel, self.names = numel, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.numel() == self.numel and not func.is_view:
            self.names.append(str(func.overloadpacket))
        return out


def test_the_gradient_of_queries_keys_and_values_is_written_once():
    layer = Attention(48, 3, bias=True)
    x = torch.rand(2, 5, 48, requires_grad=True)
    out = layer(x).sum()
    with Written(2 * 5 * 3 * 48) as written:
        out.backward()
    assert written.names == ["aten.stack"]


def test_swiglu_has_the_derivatives_of_its_definition():
    gate, value = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True).unbind(0)
    assert torch.autograd.gradcheck(swiglu, (gate, value))


def test_swiglu_is_the_same_with_and_without_gradients():
    gate, value = torch.randn(2, 4, 6).unbind(0)
    want = F.silu(gate) * value
    assert torch.equal(swiglu(gate.clone().requires_grad_(), value), want)
    assert torch.equal(swiglu(gate.clone(), value.clone().requires_grad_()), want)
    assert torch.equal(swiglu(gate.clone(), value), want)


def test_gated_mlp_leaves_its_input_alone():
    layer = GatedMlp(8, 16, bias=False)
    x = torch.randn(2, 3, 8)
    before = x.clone()
    with torch.no_grad():
        layer(x)
    assert torch.equal(x, before)


def test_gated_mlp_with_one_trainable_layer():
    layer = GatedMlp(8, 16, bias=False).requires_grad_(False)
    x = torch.randn(2, 3, 8)
    for name in ("fc1", "fc2", "fc3"):
        getattr(layer, name).requires_grad_()
        layer(x).sum().backward()
        assert getattr(layer, name).weight.grad.abs().max() > 0
        layer.requires_grad_(False)


@pytest.fixture(scope="module")
def theirs():
    from terratorch.models.backbones.terramind.model import tm_utils

    return tm_utils


@pytest.fixture
def compare():
    """Check outputs and gradients of two modules with the same random weights, in double precision."""

    def run(ours, reference, *arguments, their_arguments=None):
        ours, reference = ours.double().eval(), reference.double().eval()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.normal_(std=0.3)
        ours.load_state_dict(reference.state_dict(), strict=True)
        x = torch.randn(2, 9, 48, dtype=torch.float64)
        results = []
        for module, extra in ((ours, arguments), (reference, their_arguments or arguments)):
            image = x.clone().requires_grad_()
            out = module(image, *extra)
            out.pow(2).mean().backward()
            grads = {name: parameter.grad for name, parameter in module.named_parameters()}
            results.append({"output": out, "input": image.grad, **grads})
        with torch.no_grad():
            results[0]["inference"], results[1]["inference"] = ours(x, *arguments), results[1]["output"]
        assert set(results[0]) == set(results[1])
        for name, want in results[1].items():
            assert (results[0][name] - want).abs().max() <= 1e-12 * max(1.0, want.abs().max().item()), name

    return run


def test_layer_norm(compare, theirs):
    compare(LayerNorm(48), theirs.LayerNorm(48, eps=1e-6, bias=False))


@pytest.mark.parametrize("bias", [False, True])
def test_mlp(compare, theirs, bias):
    compare(Mlp(48, 96, bias=bias), theirs.Mlp(48, 96, bias=bias))


@pytest.mark.parametrize("bias", [False, True])
def test_gated_mlp(compare, theirs, bias):
    compare(GatedMlp(48, 100, bias=bias), theirs.GatedMlp(48, 100, bias=bias))


MASK = torch.tensor([[True] * 9, [True] * 4 + [False] * 5])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_attention(compare, theirs, bias, mask):
    reference = theirs.Attention(48, num_heads=3, qkv_bias=bias, proj_bias=bias)
    # TerraTorch's masks are [B, N, M] and True where they forbid.
    forbidden = None if mask is None else ~mask[:, None, :].expand(-1, 9, -1)
    allowed = None if mask is None else mask[:, None, None, :]
    compare(Attention(48, 3, bias=bias), reference, allowed, their_arguments=(forbidden,))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_block(compare, theirs, gated, mask):
    reference = theirs.Block(
        48,
        3,
        qkv_bias=not gated,
        proj_bias=not gated,
        mlp_bias=not gated,
        act_layer=nn.SiLU if gated else nn.GELU,
        norm_layer=partial(theirs.LayerNorm, eps=1e-6, bias=False),
        gated_mlp=gated,
    )
    forbidden = None if mask is None else ~mask[:, None, :].expand(-1, 9, -1)
    allowed = None if mask is None else mask[:, None, None, :]
    ours = Block(48, 3, mlp_ratio=4.0, bias=not gated, gated=gated)
    compare(ours, reference, allowed, their_arguments=(forbidden,))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("autocast", [False, True], ids=["single", "bf16"])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_compiled_block_is_the_same_without_graph_breaks(gated, autocast, grad):
    block = Block(48, 3, mlp_ratio=4.0, bias=True, gated=gated)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 9, 48)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast), torch.set_grad_enabled(grad):
        got, want = compiled(x), block(x)
        if grad:
            got.sum().backward()
    assert (got - want).abs().max() < (0.05 if autocast else 1e-5)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("grad", [False, True], ids=["inference", "training"])
def test_exported_block_is_the_same(strict, grad):
    block = Block(48, 3, mlp_ratio=4.0, bias=True, gated=True).eval()
    x = torch.randn(2, 9, 48)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(block, (x,), strict=strict)
        assert (program.module()(x) - block(x)).abs().max() < 1e-5


def test_drop_path_skips_whole_samples():
    block = Block(16, 2, mlp_ratio=2.0, bias=True, gated=True, drop_path=0.5).train()
    x = torch.randn(64, 3, 16)
    untouched = (block(x) == x).flatten(1).all(dim=1)
    assert 0 < untouched.sum() < 64
    block.eval()
    assert not (block(x) == x).flatten(1).all(dim=1).any()
