"""Features of a frozen backbone, remembered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from terramind_plugin.cache.cache import Memo, Value, stack, unstack
from terramind_plugin.cache.keys import Fingerprint, describe_context, list_tensors, sample_keys
from terramind_plugin.errors import ConfigError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
Features = list[Any]
"""Of each layer a tensor [B, N, D], or such tensors by name."""


class FeatureMemo:
    """Remembers the features of samples, rounded to a precision.

    bfloat16 keeps 8 binary digits, so that a value is off by at most 1 part in 256; float16 keeps 11 (1 part in 2048)
    and ends at 65504; float32 keeps all. A feature is rounded whether it was remembered or not, so that a run gives the
    same losses with a memo that is empty and with one that is not.

    Args:
        memo: Where to.
        dtype: Key of `DTYPES`.

    Raises:
        ConfigError: The precision is unknown.
    """

    def __init__(self, memo: Memo, dtype: str) -> None:
        if dtype not in DTYPES:
            raise ConfigError(f"feature_memo_dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
        self.memo = memo
        self.dtype = DTYPES[dtype]
        self._fingerprint = Fingerprint()

    def recall(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        present: Tensor | None,
        compute: Callable[[Mapping[str, Tensor], Tensor | None], Features],
        settings: Mapping[str, Any],
    ) -> Features:
        """Return the features of a batch, those of known samples from the memo.

        Args:
            model: The frozen backbone.
            inputs: Images [B, bands, H, W] by modality.
            present: Boolean [modalities, B]; None if all have all.
            compute: Returns the features of some samples.
            settings: What the features depend on besides.

        Raises:
            ConfigError: Something in the backbone trains or drops, so that features do not stay what they are, or a
                feature is too large for float16.
        """
        check_frozen(model)
        device = next(iter(inputs.values())).device

        def make_keys() -> list[bytes]:
            context = describe_context(
                what="features",
                weights=self._fingerprint.of(model),
                dtype=self.dtype,
                given=list(inputs),  # what all samples of a batch lack is not in its features
                **dict(settings),
            )
            return sample_keys(context, inputs, present)

        def compute_some(index: list[int], _: Sequence[bytes]) -> list[Value]:
            rows = torch.tensor(index, device=device)
            features = compute(
                {name: x[rows] for name, x in inputs.items()}, None if present is None else present[:, rows]
            )
            return unstack({name: self._rounded(x) for name, x in flatten(features).items()})

        batch = stack(self.memo.remember(make_keys, compute_some), device)
        return restore(batch, next(model.parameters()).dtype)

    def _rounded(self, x: Tensor) -> Tensor:
        rounded = x.to(self.dtype)
        if self.dtype == torch.float16 and not torch.equal(rounded.isinf(), x.isinf()):
            raise ConfigError("feature_memo_dtype float16 ends at 65504 and a feature is larger. Use bfloat16.")
        return rounded


def check_frozen(model: nn.Module) -> None:
    """Check that a backbone's features stay what they are.

    Raises:
        ConfigError: They do not; the message says why.
    """
    if model.training or any(x.requires_grad for x in list_tensors(model)):
        training = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        reason = (
            f"{len(training)} of its parameters train, e.g. {training[0]}"
            if training
            else "it is in training mode, in which it drops"
        )
        raise ConfigError(
            f"feature_memo remembers what a frozen backbone computes, but {reason}. Set freeze_backbone: true in "
            "model.init_args, without backbone_lora and BackboneUnfreeze, or leave backbone_feature_memo out."
        )


def flatten(features: Features) -> dict[str, Tensor]:
    """Return all tensors of the layers by 'layer' or 'layer/number/name'."""
    flat: dict[str, Tensor] = {}
    for layer, x in enumerate(features):
        if isinstance(x, Tensor):
            flat[str(layer)] = x
        else:
            flat.update({f"{layer}/{number:03d}/{name}": part for number, (name, part) in enumerate(x.items())})
    return flat


def restore(batch: Mapping[str, Tensor], dtype: torch.dtype) -> Features:
    """Return the layers again.

    Args:
        batch: As `flatten` returns it, in any order.
        dtype: Of the features.
    """
    layers: dict[int, Any] = {}
    for key in sorted(batch, key=lambda key: [int(word) for word in key.split("/")[:2]]):
        layer, *rest = key.split("/", 2)
        x = batch[key].to(dtype)
        if rest:
            layers.setdefault(int(layer), {})[rest[1]] = x
        else:
            layers[int(layer)] = x
    return [layers[layer] for layer in sorted(layers)]
