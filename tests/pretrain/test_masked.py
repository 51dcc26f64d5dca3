"""Stage 2 as Lightning runs it: the loss falls, its checkpoints are models."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader

from terramind_plugin.builders import build_backbone, build_coords_tokenizer, build_generator, build_tim
from terramind_plugin.errors import ConfigError
from terramind_plugin.model.variants import VARIANTS
from terramind_plugin.pretrain.masked import MaskedModellingTask

NANO = "terramind_sim_nano"
ARGUMENTS = {"pixels": ["S2L2A", "dem"], "tokens": ["LULC", "S2L2A", "S1GRD"], "sequences": ["coords"]}


def make_samples(count=16, size=32):
    generator = torch.Generator().manual_seed(0)
    coords = build_coords_tokenizer(family=NANO)
    samples = []
    for number in range(count):
        pixels = {
            name: torch.randn(bands, size, size, generator=generator) for name, bands in (("S2L2A", 12), ("DEM", 1))
        }
        tokens = {
            name: torch.randint(VARIANTS[NANO].vocab_sizes[name], (size // 8,) * 2, generator=generator)
            for name in ("LULC", "S2L2A", "S1GRD")
        }
        sequences = {"coords": coords.encode([[5.0 * number, -5.0 * number]]).ids[0]}
        samples.append({"pixels": pixels, "tokens": tokens, "sequences": sequences})
    return samples


SAMPLES = make_samples()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the trainer and the checkpoint of a short run."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("masked")
    task = MaskedModellingTask(NANO, **ARGUMENTS, input_tokens=[8, 24], target_tokens=24, lr=2e-3, warmup_steps=2)
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=24, save_top_k=-1)
    trainer = Trainer(
        accelerator="cpu", devices=1, max_steps=24, logger=False, enable_progress_bar=False, gradient_clip_val=1.0,
        callbacks=[save, EMAWeightAveraging(decay=0.8)], enable_model_summary=False, check_val_every_n_epoch=1,
        num_sanity_val_steps=0,
    )  # fmt: skip
    loader = DataLoader(SAMPLES, batch_size=8)
    before = trainer.validate(task, loader, verbose=False)[0]
    trainer.fit(task, loader, loader)
    return before, trainer, folder / "step=24.ckpt"


def test_loss_falls_in_every_modality(trained):
    before, trainer, _ = trained
    names = ["loss", "LULC", "S2L2A", "S1GRD", "coords"]
    after = {name: trainer.callback_metrics[f"val/{name}"].item() for name in names}
    assert after["loss"] < before["val/loss"] - 0.3
    assert all(after[name] < before[f"val/{name}"] for name in names)
    assert after["loss"] == pytest.approx(sum(after[name] for name in names[1:]) / 4)


def test_checkpoint_is_a_model(trained):
    _, _, path = trained
    image = SAMPLES[0]["pixels"]["S2L2A"][None]
    stored = torch.load(path, weights_only=True)["state_dict"]
    backbone = build_backbone(NANO, ["S2L2A"], ckpt_path=path)
    assert torch.equal(backbone.state_dict()["encoder.0.attn.qkv.weight"], stored["model.encoder.0.attn.qkv.weight"])
    thinking = build_tim(NANO, ["S2L2A"], tim_modalities=["LULC", "coords"], ckpt_path=path).eval()
    thinking(image)
    generator = build_generator(NANO, ["S2L2A"], ["S1GRD", "LULC", "coords"], ckpt_path=path, timesteps=1)
    own = generator.sampler.model.state_dict()
    assert all(torch.equal(value, stored[f"model.{name}"]) for name, value in own.items())
    assert generator({"S2L2A": image})["LULC"].shape == (1, 10, 32, 32)


def test_goes_on_from_a_checkpoint(trained):
    _, _, path = trained
    task = MaskedModellingTask(NANO, **ARGUMENTS, ckpt_path=str(path))
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert all(torch.equal(value, stored[f"model.{name}"]) for name, value in task.model.state_dict().items())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"variant": "terramind_sim_nan"}, "There is no model 'terramind_sim_nan'"),
        ({"pixels": ["LULC"]}, "enters TerraMind as tokens"),
        ({"tokens": ["coords"]}, "Move it from tokens to sequences"),
        ({"tokens": ["RGB"]}, "has no tokens"),
        ({"sequences": ["caption"]}, "they have no captions"),
        ({"sequences": ["LULC"]}, "sequences can name coords, got LULC"),
        ({"tokens": ["LULC", "landcover"]}, "named twice"),
        ({"input_tokens": [4]}, "a minimum and a maximum"),
        ({"tokens": []}, "tokens is empty"),
    ],
)
def test_settings_that_are_not_possible(changed, message):
    with pytest.raises(ConfigError, match=message):
        MaskedModellingTask(**{"variant": NANO, **ARGUMENTS, **changed})


def test_lead_in_asks_its_own_question():
    task = MaskedModellingTask(
        NANO, **ARGUMENTS, input_tokens=[8, 24], target_tokens=24, lead_in_steps=2,
        lead_in_input_alphas={"pixels": 0, "tokens": 0, "sequences": 0, "pixels.S2L2A": 1},
        lead_in_target_alphas={"tokens": 0, "sequences": 0, "tokens.LULC": 1},
    )  # fmt: skip
    batch = next(iter(DataLoader(SAMPLES, batch_size=8)))
    asked = [
        {name for name, count in task._loss(batch, number, plan).counts.items() if count}
        for number, plan in ((0, task.lead_in), (1, task.lead_in), (2, task.plan))
    ]
    assert asked[:2] == [{"LULC"}] * 2
    assert len(asked[2]) > 1


def test_attention_to_the_context_begins_at_the_same_place():
    model = MaskedModellingTask(NANO, **ARGUMENTS).model
    block = model.decoder[0]
    place = model.decoder_embeddings["tok_lulc@224"].embed_positions((8, 8))
    context = model.encoder_embeddings["untok_sen2l2a@224"].embed_positions((8, 8))
    keys, _ = block.keys_values(context)
    queries = block.cross_attn.q(block.query_norm(place)).unflatten(2, (block.cross_attn.num_heads, -1)).transpose(1, 2)
    weights = (queries @ keys.transpose(2, 3) / keys.shape[3] ** 0.5).softmax(dim=3).mean(dim=1)[0]
    assert (weights.argmax(dim=1) == torch.arange(64)).all()
    assert weights.diagonal().mean() > 0.3
