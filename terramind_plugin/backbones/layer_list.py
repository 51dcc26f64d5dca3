"""The list in which a backbone returns its selected layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch.utils import _pytree as pytree


class LayerList(list[Any]):
    """List of the selected layers in order, which is indexed by the layer's number in the encoder.

    `SelectIndices` with indices [2, 5, 8, 11] thus selects the same layers, whatever layers `out_indices` leaves out.
    Negative indices count from the last selected layer.

    Args:
        items: One entry for each selected layer.
        layers: Numbers of these layers.
        positions: Whether an index that is not a layer's number may be a position. True for channel counts, which are
            equal for all layers and which some necks read by position. Index 0 of a single layer is always a position.
    """

    def __init__(self, items: Sequence[Any], layers: Sequence[int], *, positions: bool = False) -> None:
        super().__init__(items)
        self.layers = tuple(layers)
        self.positions = positions

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) or index < 0:
            return super().__getitem__(index)
        if index in self.layers:
            return super().__getitem__(self.layers.index(index))
        if self.positions or (index == 0 and len(self) == 1):
            return super().__getitem__(index)
        raise IndexError(f"Layer {index} was not kept. out_indices kept {list(self.layers)}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(LayerList, positions=self.positions), (list(self), self.layers)

    def copy(self) -> LayerList:
        """Return a shallow copy that is indexed by layer number as well."""
        return LayerList(self, self.layers, positions=self.positions)


# Compiled and exported models then return this type.
pytree.register_pytree_node(
    LayerList,
    lambda layers: (list(layers), (layers.layers, layers.positions)),
    lambda items, context: LayerList(list(items), context[0], positions=context[1]),
    serialized_type_name="terramind_plugin.LayerList",
    to_dumpable_context=lambda context: [list(context[0]), context[1]],
    from_dumpable_context=lambda context: (tuple(context[0]), context[1]),
    flatten_with_keys_fn=lambda layers: (
        [(pytree.SequenceKey(index), layer) for index, layer in enumerate(layers)],
        (layers.layers, layers.positions),
    ),
)
