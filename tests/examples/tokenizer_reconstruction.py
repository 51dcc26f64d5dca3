"""A chip through a tokenizer: to token ids and back.

    terramind simulate --out data --chips 3
    python tokenizer_reconstruction.py data/data/S2L2AHand/Delta_0001_S2L2AHand.tif --out out

As in TerraMind's tutorial terramind_tokenizer_reconstruction.ipynb; what is new is `import terramind_plugin`.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import rasterio
import torch
from terratorch.models.backbones.terramind.model.terramind_register import v1_pretraining_mean, v1_pretraining_std
from terratorch.registry import FULL_MODEL_REGISTRY

import terramind_plugin

parser = argparse.ArgumentParser(description="Encode a Sentinel-2 L2A chip to tokens and decode it again.")
parser.add_argument("chip", type=Path, help="GeoTIFF of 12 bands, reflectance x 10000")
parser.add_argument("--out", type=Path, required=True, help="folder to write to")
parser.add_argument("--timesteps", type=int, default=10, help="denoising steps (default: %(default)s)")
parser.add_argument("--pretrained", default="true", help="published weights, or random ones (default: true)")
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)
device = "cuda" if torch.cuda.is_available() else "cpu"

with rasterio.open(options.chip) as raster:
    data = torch.tensor(raster.read().astype("float32")).unsqueeze(0)  # [batch, bands, height, width]
    profile = raster.profile

# Tokenizers take standardised images.
mean = torch.tensor(v1_pretraining_mean["untok_sen2l2a@224"])[None, :, None, None]
std = torch.tensor(v1_pretraining_std["untok_sen2l2a@224"])[None, :, None, None]
x = ((data - mean) / std).to(device)

model = FULL_MODEL_REGISTRY.build("terramind_v1_tokenizer_s2l2a", pretrained=options.pretrained)
model = model.to(device)

with torch.no_grad():
    reconstruction = model(x, timesteps=options.timesteps)
    # The same in two steps: token ids are what a generator draws and what can be stored.
    _, _, tokens = model.encode(x)
    decoded = model.decode_tokens(tokens, verbose=True, timesteps=options.timesteps)

print(f"{x.shape[-2]} x {x.shape[-1]} pixels are {tokens.shape[-2]} x {tokens.shape[-1]} tokens")
print(f"decoded from tokens, the image differs by {(decoded - reconstruction).abs().max().item():.2g}")
reconstruction = reconstruction.cpu() * std + mean

np.save(options.out / "tokens.npy", tokens[0].cpu().numpy())
profile.update(dtype="float32", nodata=None, driver="GTiff")
with rasterio.open(options.out / "reconstruction.tif", "w", **profile) as raster:
    raster.write(reconstruction[0].numpy())

figure, axes = plt.subplots(1, 2, figsize=(9, 5), layout="constrained")
terramind_plugin.plot_modality("S2L2A", data, axes[0]).set_title("Input")
terramind_plugin.plot_modality("S2L2A", reconstruction, axes[1]).set_title(f"Reconstruction, {options.timesteps} steps")
figure.savefig(options.out / "reconstruction.png", bbox_inches="tight")
