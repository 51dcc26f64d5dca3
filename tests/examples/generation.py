"""A chip in, other modalities of the same place out.

    terramind simulate --out data --chips 3
    python generation.py data/data/S2L2AHand/Delta_0001_S2L2AHand.tif --out out

As in TerraMind's tutorial terramind_generation.ipynb; what is new is `import terramind_plugin`.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import rasterio
import torch
from terratorch.registry import FULL_MODEL_REGISTRY

import terramind_plugin

parser = argparse.ArgumentParser(description="Generate other modalities of a chip.")
parser.add_argument("chip", type=Path, help="GeoTIFF in the units of its modality")
parser.add_argument("--out", type=Path, required=True, help="folder to write to")
parser.add_argument("--modality", default="S2L2A", help="what the chip shows (default: %(default)s)")
parser.add_argument("--to", default="S1GRD,DEM,LULC", help="what to generate, in this order (default: %(default)s)")
parser.add_argument("--model", default="terramind_v1_base_generate", help="default: %(default)s")
parser.add_argument("--timesteps", type=int, default=10, help="denoising steps (default: %(default)s)")
parser.add_argument("--pretrained", default="true", help="published weights, or random ones (default: true)")
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)
device = "cuda" if torch.cuda.is_available() else "cpu"

with rasterio.open(options.chip) as raster:
    data = torch.tensor(raster.read().astype("float32")).unsqueeze(0)  # [batch, bands, height, width]
    profile = raster.profile

model = FULL_MODEL_REGISTRY.build(
    options.model,
    modalities=[options.modality],
    output_modalities=options.to.split(","),
    pretrained=options.pretrained,
    standardize=True,  # images come and go in their own units
)
_ = model.to(device)

with torch.no_grad():
    generated = model(data.to(device), verbose=True, timesteps=options.timesteps)

figure, axes = plt.subplots(1, 1 + len(generated), figsize=(4.5 * (1 + len(generated)), 5), layout="constrained")
terramind_plugin.plot_modality(options.modality, data, axes[0]).set_title(f"Input {options.modality}")
for axis, (modality, image) in zip(axes[1:], generated.items(), strict=True):
    print(f"{modality}: {list(image.shape)}, {image.min():.4g} to {image.max():.4g}")
    terramind_plugin.plot_modality(modality, image, axis).set_title(f"Generated {modality}")
    # Land cover comes as one score for each class.
    image = image[0].argmax(dim=0, keepdim=True).to(torch.uint8) if modality == "LULC" else image[0]
    profile.update(count=len(image), dtype=str(image.dtype).removeprefix("torch."), nodata=None, driver="GTiff")
    with rasterio.open(options.out / f"{modality}.tif", "w", **profile) as raster:
        raster.write(image.cpu().numpy())
figure.savefig(options.out / "generated.png", bbox_inches="tight")
