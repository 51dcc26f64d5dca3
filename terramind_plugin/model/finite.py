"""A check for NaN and infinity that does not make a GPU wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from terramind_plugin.errors import DataError


class FiniteGuard:
    """Raises where images hold NaN or infinity, from which a model would make meaningless token ids.

    On a CPU, or where the caller may wait, it raises at once. Otherwise the GPU computes the answer and copies it while
    it goes on; the next call that finds the answer raises.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Any, Tensor, list[str]]] = deque()

    def __reduce__(self) -> tuple[Any, ...]:
        # Events belong to a process; a copy has nothing to wait for.
        return FiniteGuard, ()

    def __call__(self, images: Mapping[str, Tensor], *, wait: bool) -> None:
        """Check images.

        Args:
            images: By name, of any shape; those that are not float tensors are left out.
            wait: Whether the caller may wait for a GPU.

        Raises:
            DataError: One of these images is not finite, or one of an earlier call.
        """
        if torch.compiler.is_compiling():
            return
        self.settle()
        images = {name: image for name, image in images.items() if image.is_floating_point()}
        if not images:
            return
        flags = torch.stack([image.isfinite().all() for image in images.values()])
        if wait or flags.device.type != "cuda":
            _raise(list(images), flags)
            return
        here = torch.empty(len(flags), dtype=torch.bool, pin_memory=True)
        here.copy_(flags, non_blocking=True)
        make_event: Any = torch.cuda.Event
        event = make_event()
        event.record(torch.cuda.current_stream(flags.device))
        self._pending.append((event, here, list(images)))

    def settle(self) -> None:
        """Look at the answers that have arrived.

        Raises:
            DataError: An image was not finite.
        """
        while self._pending and self._pending[0][0].query():
            _, flags, names = self._pending.popleft()
            _raise(names, flags)


def _raise(names: list[str], finite: Tensor) -> None:
    wrong = [name for name, fine in zip(names, finite.tolist(), strict=True) if not fine]
    if wrong:
        who = f"{' and '.join(wrong)} {'has' if len(wrong) == 1 else 'have'}"
        raise DataError(
            f"{who} values that are NaN or infinite. Fill them with the mean, 0 if standardised, whether pixels or "
            "whole bands were not measured. A modality that is missing as a whole is left out of the input, or "
            "declared by modality_mask where only some samples lack it."
        )


def zero_nan(image: Tensor) -> Tensor:
    """Return a copy with 0 in place of NaN; infinite values stay, since 3.4e38 would pass for a number.

    Args:
        image: Of any shape.
    """
    return image.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
