"""The loss of masked modelling: TerraTorch's own for the same weights, inputs and masks; it falls, and reaches all."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch

from terramind_plugin.errors import ConfigError
from terramind_plugin.generation.decoding import START, STOP
from terramind_plugin.model.encoder_decoder import EncoderDecoder
from terramind_plugin.model.modalities import resolve, token_key
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.pretrain.masked_loss import key_of, masked_loss, pack
from terramind_plugin.pretrain.masking import MaskPlan, draw_masks
from tests.generation.conftest import SHALLOW, TINY, make_tokens, scatter_weights, specs

PIXELS = ("S2L2A", "S1GRD", "RGB")
TOKENS = ("S1GRD", "DEM", "LULC")
PLAN = MaskPlan(PIXELS, TOKENS, {"coords": 3}, (20, 30), 24, {"sequences": 0.2}, {"sequences": 1.0})


def make_chips(image, *, batch=6, size=64, dtype=torch.float64):
    return {
        "pixels": {name: image(name, batch, size, size, dtype=dtype) for name in PIXELS},
        "tokens": {name: make_tokens(name, batch, 4, 4, seed) for seed, name in enumerate(TOKENS)},
        "sequences": {"coords": make_tokens("coords", batch)},
    }


def make_model(variant=SHALLOW, pixels=PIXELS, tokens=TOKENS, size=224):
    keys = [resolve(name).token_key for name in (*tokens, "coords")]
    targets = [resolve(name) for name in (*tokens, "coords")]
    return EncoderDecoder(variant, specs([*pixels, *keys]), targets, img_size=(size, size))


@pytest.fixture(scope="module")
def pair():
    """Return TerraTorch's model and ours with the same weights, float64."""
    from terratorch.models.backbones.terramind.model.modality_info import MODALITY_INFO
    from terratorch.models.backbones.terramind.model.terramind import (
        TerraMind,
        build_modality_embeddings,
        build_output_modality_embeddings,
    )
    from terratorch.models.backbones.terramind.model.tm_utils import LayerNorm

    torch.manual_seed(1)
    sizes = {"img_size": 224, "dim": TINY["dim"], "patch_size": 16}
    keys = [resolve(name).token_key for name in TOKENS]
    read, _ = build_modality_embeddings(MODALITY_INFO, [*PIXELS, *keys, "coords"], **sizes)
    told, _ = build_output_modality_embeddings(MODALITY_INFO, [*TOKENS, "coords"], **sizes)
    norm = partial(LayerNorm, eps=1e-6, bias=False)
    theirs = scatter_weights(TerraMind(read, told, MODALITY_INFO, norm_layer=norm, **TINY)).double()
    ours = make_model().double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours


def reference_inputs(chips, masks):
    """Return what TerraTorch's forward takes; its masks are True where there is nothing."""
    batch = len(chips["pixels"]["S2L2A"])
    state = {}
    for entry in (*masks.inputs, *masks.targets):
        kind, _, name = entry.partition(".")
        if kind == "sequences" or key_of(entry) in state:
            continue
        x = chips[kind][name]
        nothing = torch.zeros(batch, 16, dtype=torch.bool)
        target = masks.targets.get(entry, nothing)
        attention = torch.zeros(batch, 16, dtype=torch.long)
        attention.scatter_(1, target.long().argmax(dim=1, keepdim=True), target.sum(dim=1, keepdim=True))
        state[key_of(entry)] = {
            "tensor": x,
            "input_mask": ~masks.inputs.get(entry, nothing),
            "target_mask": ~target,
            "decoder_attention_mask": attention,
        }
    ids = chips["sequences"]["coords"]
    shown, told = masks.inputs["sequences.coords"], masks.targets["sequences.coords"]
    tensor = torch.zeros(batch, 9, dtype=torch.long)
    is_input, is_target = torch.zeros(batch, 9, dtype=torch.bool), torch.zeros(batch, 9, dtype=torch.bool)
    for n in range(batch):
        left = [START] if shown[n, 0] else ids[n].tolist() if shown[n, 1] else []
        right = [START, *ids[n].tolist(), STOP] if told[n, 0] else []
        tensor[n, : len(left) + len(right)] = torch.tensor([*left, *right], dtype=torch.long)
        is_input[n, : len(left)] = True
        is_target[n, len(left) : len(left) + len(right)] = True
    state["coords"] = {
        "tensor": tensor,
        "input_mask": ~is_input,
        "target_mask": ~is_target,
        "decoder_attention_mask": is_target.long(),
    }
    return state


@pytest.mark.parametrize("seed", range(4))
def test_loss_is_that_of_terratorch(pair, image, seed):
    theirs, ours = pair
    chips = make_chips(image)
    masks = draw_masks(PLAN, 6, 16, torch.Generator().manual_seed(seed))
    theirs_loss, by_modality = theirs(reference_inputs(chips, masks), 30, 24, loss_type="mod")
    # Theirs is in single precision where a modality has nothing to predict.
    want = sum(value.double().sum() for value in by_modality.values()) / len(by_modality)
    assert theirs_loss.item() == pytest.approx(want.item(), rel=1e-6)
    got = masked_loss(ours, chips, masks)
    assert sum(got.counts.values()) == sum(int(mask.sum()) for mask in masks.targets.values())
    assert got.loss.item() == pytest.approx(want.item(), rel=1e-9)
    for name, value in got.by_modality.items():
        assert value.item() == pytest.approx(by_modality[token_key(resolve(name))].item(), rel=1e-9)
    single = {kind: {k: v.float() if kind == "pixels" else v for k, v in part.items()} for kind, part in chips.items()}
    with torch.no_grad():
        loss = masked_loss(copy.deepcopy(ours).float(), single, masks).loss
    assert loss.item() == pytest.approx(want.item(), rel=1e-4)


def test_seeds_that_are_compared_cover_sequences():
    roles = set()
    for seed in range(4):
        masks = draw_masks(PLAN, 6, 16, torch.Generator().manual_seed(seed))
        shown, told = masks.inputs["sequences.coords"], masks.targets["sequences.coords"]
        roles |= set(zip(shown.sum(1).tolist(), told.sum(1).tolist(), strict=True))
    assert roles >= {(3, 0), (0, 4), (1, 4)}


def test_gradients_are_those_of_terratorch(pair, image):
    theirs, ours = pair
    chips = make_chips(image)
    masks = draw_masks(PLAN, 6, 16, torch.Generator().manual_seed(5))
    theirs(reference_inputs(chips, masks), 30, 24, loss_type="mod")[0].backward()
    masked_loss(ours, chips, masks).loss.backward()
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        want = wanted[name].grad
        assert (parameter.grad - (0 if want is None else want)).abs().max() <= 1e-9, name
    theirs.zero_grad()
    ours.zero_grad()


def test_average_over_tokens(pair, image):
    _, ours = pair
    masks = draw_masks(PLAN, 6, 16, torch.Generator().manual_seed(0))
    with torch.no_grad():
        got = masked_loss(ours, make_chips(image), masks, average="token")
    want = sum(got.by_modality[name] * number for name, number in got.counts.items()) / sum(got.counts.values())
    assert got.loss.item() == pytest.approx(want.item())


def test_packing():
    masks = {"a": torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.bool), "b": torch.tensor([[0, 1], [1, 1]]).bool()}
    packing = pack(masks)
    assert packing.entry.tolist() == [[0, 0, 1], [1, 1, -1]]
    numbers = [masks["a"].flatten().nonzero().double(), 10 + masks["b"].flatten().nonzero().double()]
    assert packing.join(numbers)[..., 0].tolist() == [[0, 2, 11], [12, 13, 0]]
    flat = packing.join(numbers).flatten()
    assert flat[packing.positions["a"]].tolist() == [0, 2]
    assert flat[packing.positions["b"]].tolist() == [11, 12, 13]
    assert packing.valid.tolist() == [[True, True, True], [True, True, False]]


@pytest.fixture
def nano(image):
    """Return the small model and a batch for it."""
    variant = VARIANTS["terramind_sim_nano"]
    torch.manual_seed(0)
    chips = make_chips(image, size=32, dtype=torch.float32)
    chips["tokens"] = {name: ids % variant.vocab_sizes[name] for name, ids in chips["tokens"].items()}
    chips["sequences"]["coords"] = torch.tensor([[20 + n, 60 + n, 3] for n in range(6)])
    return make_model(variant, size=64), chips


def test_loss_falls_and_reaches_every_weight(nano):
    model, chips = nano
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, reached = [], set()
    for step in range(20):
        masks = draw_masks(PLAN, 6, 16, torch.Generator().manual_seed(step % 5))
        loss = masked_loss(model, chips, masks).loss
        optimizer.zero_grad()
        loss.backward()
        reached |= {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
        # Weights without a use in this batch have a gradient, too: processes wait for each other's.
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert reached == {name for name, _ in model.named_parameters()}


def test_half_precision(nano):
    model, chips = nano
    masks = draw_masks(PLAN, 6, 16, torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = masked_loss(model, chips, masks).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = masked_loss(model, chips, masks).loss
    assert loss.item() == pytest.approx(want.item(), rel=0.02)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda chips: chips["tokens"].pop("LULC"), "no tokens of LULC"),
        (lambda chips: chips["pixels"].update(RGB=torch.zeros(6, 3, 96, 96)), "pixels.RGB should have 16 tokens"),
        (lambda chips: chips["tokens"].update(DEM=torch.zeros(6, 2, 8).long()), "tokens.DEM 2 x 8"),
        (lambda chips: chips["sequences"].update(coords=torch.zeros(6, 4).long()), "coords should have 3 token ids"),
    ],
)
def test_batches_that_do_not_fit(pair, image, change, message):
    chips = make_chips(image)
    change(chips)
    with pytest.raises(ConfigError, match=message):
        masked_loss(pair[1], chips, draw_masks(PLAN, 6, 16, torch.Generator().manual_seed(0)))
