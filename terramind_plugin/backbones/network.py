"""Compilation of a whole network around a backbone of this package, or around any other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from terramind_plugin.backbones.encoder import find_backbone
from terramind_plugin.model.compiled import check_mode, compile_model


def compile_network(
    model: nn.Module, mode: str = "graphs", *, backend: str | Callable[..., Any] = "inductor"
) -> list[nn.Module]:
    """Compile a network in place, and return the modules whose calls are compiled.

    A network is one graph for each shape of its inputs. Only a backbone that makes token ids, by frozen tokenizers or a
    generator, has several graphs, because Python checks values between them: one for the encoder, one for each part
    behind the backbone, and two for each generated modality (the generator's encoder, and its decoder with the drawing
    of ids).

    Args:
        model: Backbone, neck, decoder and head, or any other network.
        mode: As in `compile_model`.
        backend: As in `compile_model`.

    Raises:
        ConfigError: The mode is unknown.
    """
    check_mode(mode)
    backbone = find_backbone(model)
    if backbone is None or not backbone.makes_tokens:
        return [compile_model(model, mode, backend=backend)]
    backbone.compile_parts(mode, backend=backend)
    return [compile_model(part, mode, backend=backend) for part in _parts_around(model, backbone)] or [backbone]


def _parts_around(module: nn.Module, backbone: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest callable parts of a module that do not contain the backbone, and none of its own parts."""
    if module is backbone:
        return
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict) or any(one is backbone for one in child.modules()):
            yield from _parts_around(child, backbone)
        else:
            yield child
