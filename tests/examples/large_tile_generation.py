"""A large tile, cut into overlapping chips: each goes through the generator, and the results are blended.

    terramind simulate --out data --chips 3 --size 1024
    python large_tile_generation.py data/data/S2L2AHand/Delta_0001_S2L2AHand.tif --out out

As in TerraMind's tutorial large_tile_generation.ipynb; what is new is `import terramind_plugin`.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import rasterio
import torch
from terratorch.registry import FULL_MODEL_REGISTRY
from terratorch.tasks.tiled_inference import tiled_inference

import terramind_plugin

parser = argparse.ArgumentParser(description="Generate other modalities of a tile that is larger than a chip.")
parser.add_argument("tile", type=Path, help="GeoTIFF in the units of its modality")
parser.add_argument("--out", type=Path, required=True, help="folder to write to")
parser.add_argument("--modality", default="S2L2A", help="what the tile shows (default: %(default)s)")
parser.add_argument("--to", default="S1GRD,LULC", help="what to generate, in this order (default: %(default)s)")
parser.add_argument("--model", default="terramind_v1_base_generate", help="default: %(default)s")
parser.add_argument("--crop", type=int, default=256, help="side of a chip in pixels (default: %(default)s)")
parser.add_argument("--stride", type=int, default=192, help="pixels from chip to chip (default: %(default)s)")
parser.add_argument("--batch_size", type=int, default=16, help="chips at once (default: %(default)s)")
parser.add_argument("--timesteps", type=int, default=10, help="denoising steps (default: %(default)s)")
parser.add_argument("--pretrained", default="true", help="published weights, or random ones (default: true)")
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)
device = "cuda" if torch.cuda.is_available() else "cpu"
output_modalities = options.to.split(",")

with rasterio.open(options.tile) as raster:
    data = torch.tensor(raster.read().astype("float32"), device=device).unsqueeze(0)
    profile = raster.profile

model = FULL_MODEL_REGISTRY.build(
    options.model,
    modalities=[options.modality],
    output_modalities=output_modalities,
    pretrained=options.pretrained,
    standardize=True,
    timesteps=options.timesteps,
)
model = model.to(device)


def model_forward(x):
    """Return all outputs one below the other: tiled_inference blends one tensor."""
    generated = model(x)
    return torch.concat([generated[modality] for modality in output_modalities], dim=1)


pred = tiled_inference(
    model_forward, data, crop=options.crop, stride=options.stride, batch_size=options.batch_size, verbose=True
)
pred = pred.squeeze(0).cpu()

num_channels = {"S2L2A": 12, "S1GRD": 2, "S1RTC": 2, "DEM": 1, "LULC": 10, "NDVI": 1}
counts = [num_channels[modality] for modality in output_modalities]
generated = dict(zip(output_modalities, pred.split(counts), strict=True))
if "LULC" in generated:
    generated["LULC"] = generated["LULC"].argmax(dim=0, keepdim=True).to(torch.uint8)

figure, axes = plt.subplots(1, 1 + len(generated), figsize=(5 * (1 + len(generated)), 6), layout="constrained")
terramind_plugin.plot_modality(options.modality, data, axes[0]).set_title(f"Input {options.modality}")
for axis, (modality, image) in zip(axes[1:], generated.items(), strict=True):
    print(f"{modality}: {list(image.shape)}, {image.min():.4g} to {image.max():.4g}")
    terramind_plugin.plot_modality(modality, image, axis).set_title(f"Generated {modality}")
    profile.update(count=len(image), dtype=str(image.dtype).removeprefix("torch."), nodata=None, driver="GTiff")
    with rasterio.open(options.out / f"{modality}.tif", "w", **profile) as raster:
        raster.write(image.numpy())
figure.savefig(options.out / "generated.png", bbox_inches="tight")
