"""Models that are made ready for inference give the same numbers."""

from __future__ import annotations

import copy

import torch
from terratorch.models.decoders import UNetDecoder
from torch import Tensor, nn

from terramind_plugin.inference.segmentation import for_inference
from terramind_plugin.integration.decoders import UpsamplingBlock


class Maps(nn.Module):
    """A neck, a decoder and a norm that follows no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = nn.Sequential(nn.ConvTranspose2d(8, 6, 2, stride=2), nn.BatchNorm2d(6), nn.GELU())
        self.decoder = UNetDecoder([6, 8], [10, 4])
        self.head = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2, track_running_stats=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decoder([self.neck(x), x]))


def test_norms_become_part_of_convolutions() -> None:
    torch.manual_seed(0)
    model = Maps().train()
    for _ in range(20):
        model(3 * torch.randn(4, 8, 5, 7) + 1)  # gives the norms something to do
    model.eval()
    x = 3 * torch.randn(2, 8, 6, 3) + 1
    made = for_inference(copy.deepcopy(model))
    with torch.no_grad():
        expected = model(x)
        assert (made(x) - expected).abs().max() < 1e-5 * max(1, expected.abs().max())
    assert [name for name, module in made.named_modules() if isinstance(module, nn.BatchNorm2d)] == ["head.0", "head.2"]
    assert all(isinstance(block, UpsamplingBlock) for block in made.decoder.decoder.blocks)
    assert not any(parameter.requires_grad for parameter in made.parameters())
