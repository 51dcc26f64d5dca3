"""What makes Python wait for a GPU, counted on a CPU: operations whose result or shape depends on values of tensors."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "aten._local_scalar_dense",
    "aten.equal",
    "aten.is_nonzero",
    "aten.item",
    "aten.masked_select",
    "aten.nonzero",
    "aten._unique2",
    "aten.unique_dim",
}
"""Operations that read values: .item(), .tolist() of numbers, if, boolean indices, torch.equal, unique."""


class Reads(TorchDispatchMode):
    """Names of the operations that would wait, while it is entered."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func.overloadpacket)
        if name in WAITING or self._by_boolean(name, args):
            self.names.append(name)
        return func(*args, **(kwargs or {}))

    @staticmethod
    def _by_boolean(name, args):
        """Return whether a boolean tensor picks elements: their number is known only when it is computed."""
        if name not in ("aten.index", "aten.index_put", "aten.index_put_"):
            return False
        indices = [index for index in args[1] if index is not None]
        return any(index.dtype in (torch.bool, torch.uint8) for index in indices)
