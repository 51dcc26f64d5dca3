"""The stack of blocks."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from terramind_plugin.model.encoder import build_blocks, initialise, run_blocks
from terramind_plugin.model.layers import LayerNorm
from terramind_plugin.model.variants import VARIANTS

SMALL = replace(VARIANTS["terramind_v1_tiny"], dim=32, num_heads=4)


@pytest.fixture
def encoder():
    def make(depth=4, *, gated=False, **kwargs):
        blocks = build_blocks(replace(SMALL, depth=depth, bias=not gated, gated=gated), **kwargs)
        initialise(blocks)
        return blocks, LayerNorm(32)

    return make


def test_drop_path_grows_with_depth(encoder):
    blocks, _ = encoder(5, drop_path_rate=0.4)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_only_the_last_block_is_normalised(encoder):
    blocks, norm = encoder()
    torch.nn.init.constant_(norm.weight, 3.0)
    x = torch.randn(2, 5, 32)
    kept = run_blocks(x, blocks, norm, keep=range(4))
    assert torch.equal(kept[0], blocks[0](x))
    assert kept[3].std().item() == pytest.approx(3, rel=0.05)


def test_keep_picks(encoder):
    blocks, norm = encoder()
    x = torch.randn(2, 5, 32)
    everything = run_blocks(x, blocks, norm, keep=range(4))
    for one, other in zip(run_blocks(x, blocks, norm, keep=(1, 3)), everything[1::2], strict=True):
        assert torch.equal(one, other)


def test_blocks_after_the_last_kept_do_not_run(encoder):
    blocks, norm = encoder()
    ran = []
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, index=index: ran.append(index))
    run_blocks(torch.randn(1, 3, 32), blocks, norm, keep=(1,))
    assert ran == [0, 1]


def test_unselected_layers_are_freed(encoder):
    blocks, norm = encoder()
    outputs = []
    for block in blocks:
        block.register_forward_hook(lambda _module, _args, out: outputs.append(weakref.ref(out)))
    with torch.no_grad():
        kept = run_blocks(torch.randn(1, 3, 32), blocks, norm, keep=(1,))
    gc.collect()
    assert [ref() is not None for ref in outputs] == [False, True]
    assert kept[0] is outputs[1]()


@pytest.mark.parametrize("gated", [False, True])
def test_masked_tokens_have_no_influence(encoder, gated):
    blocks, norm = encoder(gated=gated)
    x = torch.randn(2, 6, 32)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[:, 4:] = False
    masked = run_blocks(x, blocks, norm, mask=mask, keep=(3,))[0][:, :4]
    assert torch.allclose(masked, run_blocks(x[:, :4], blocks, norm, keep=(3,))[0], atol=1e-5)


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_recomputation_has_the_same_gradients(encoder, drop):
    blocks, norm = encoder(drop_rate=drop, attn_drop_rate=drop, drop_path_rate=drop)
    x = torch.randn(2, 5, 32)
    grads = []
    for recompute in (False, True):
        blocks.zero_grad()
        torch.manual_seed(1)
        run_blocks(x, blocks, norm, keep=(1, 3), recompute=recompute)[1].square().sum().backward()
        grads.append([p.grad.clone() for p in blocks.parameters()])
    for one, other in zip(*grads, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("name", ["drop_rate", "attn_drop_rate", "drop_path_rate"])
def test_dropout_only_in_training(encoder, name):
    blocks, norm = encoder(**{name: 0.5})
    x = torch.randn(4, 5, 32)

    def run():
        return run_blocks(x, blocks, norm, keep=(3,))[0]

    assert not torch.equal(run(), run())
    blocks.eval()
    assert torch.equal(run(), run())


def test_initialisation():
    blocks = build_blocks(replace(SMALL, dim=64, depth=2))
    initialise(blocks)
    limit = (6 / (64 + 64)) ** 0.5
    for part in blocks[0].attn.qkv.weight.chunk(3):
        assert 0.95 * limit < part.abs().max() <= limit
    assert not blocks[0].attn.qkv.bias.any()
    assert torch.equal(blocks[0].norm1.weight, torch.ones(64))
