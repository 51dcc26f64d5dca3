"""A check for NaN and infinity that does not have to wait for the GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from terramind_plugin.errors import DataError


class FiniteGuard:
    """Raises an error if images hold NaN or infinity, for which a model would give meaningless token ids.

    On a CPU, or where the caller may wait, it raises at once. Otherwise the GPU computes the answer and copies it while
    it goes on; the next call that finds the answer raises.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Any, Tensor, list[str]]] = deque()

    def __reduce__(self) -> tuple[Any, ...]:
        # Events belong to a process; a copy has no pending checks.
        return FiniteGuard, ()

    def __call__(self, images: Mapping[str, Tensor], *, wait: bool) -> None:
        """Check images.

        Args:
            images: Images by name, of any shape; tensors of other types than float are not checked.
            wait: Whether the caller may wait for a GPU.

        Raises:
            DataError: An image of this call or of an earlier one is not finite.
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
        """Evaluate the checks that have finished on the GPU.

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
    """Return a copy with 0 instead of NaN; infinite values are kept, since replacing them by 3.4e38 would hide them.

    Args:
        image: Image of any shape.
    """
    return image.nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
