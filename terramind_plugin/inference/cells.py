"""Windows whose results are coarser than the scene: one cell for each patch, or for each window."""

from __future__ import annotations

from dataclasses import dataclass

from terramind_plugin.errors import ConfigError
from terramind_plugin.inference.options import Options
from terramind_plugin.inference.windows import Axis, Plan, plan_axis


@dataclass(frozen=True)
class WindowAxis(Axis):
    """Windows along one side of an image, each of which is one cell; evenly spread from the first to the last pixel."""

    firsts: tuple[int, ...] = ()
    """First pixel of each window."""
    span: int = 0
    """Length of a window in pixels."""
    image: int = 0
    """Length of the image in pixels."""

    @property
    def pixels(self) -> int:
        """Return the length of a window in pixels."""
        return self.span

    def pixel(self, index: int) -> int:
        """Return the first pixel of a window."""
        return self.firsts[index]

    def placement(self) -> tuple[float, float]:
        """Return the start of the first cell and the distance between cells, which lie in the middle of windows."""
        if len(self.firsts) == 1:
            return 0.0, float(self.image)
        step = (self.image - self.span) / (len(self.firsts) - 1)
        return (self.span - step) / 2, step

    def extent(self, index: int) -> tuple[int, int]:
        """Return the first pixel of a window, and the one after the last."""
        return self.firsts[index], self.firsts[index] + self.span


def plan_patches(shape: tuple[int, int], options: Options, patch: int) -> Plan:
    """Return windows whose results have one cell per patch.

    Each patch belongs to one window, unless windows overlap beyond their margins; then their results are blended.

    Args:
        shape: Height and width of the scene in pixels.
        options: Options with numbers for the windows.
        patch: Patch size of the model in pixels.

    Raises:
        ConfigError: The windows are not possible.
    """
    crop, stride = _numbers(options)
    if options.margin % patch:
        raise ConfigError(f"margin must be a multiple of the model's patch, {patch} pixels, got {options.margin}.")
    axes = [_plan_axis(length, crop, stride, options.margin, patch) for length in shape]
    return Plan(axes[0], axes[1])


def _plan_axis(length: int, crop: int, stride: int, margin: int, patch: int) -> Axis:
    axis = plan_axis(length, crop, stride, margin, multiple=patch, align=patch)
    starts = tuple(start // patch for start in axis.starts)
    length, size = -(-length // patch), axis.size // patch
    return Axis(length, size, starts, margin // patch, axis.ramp // patch, cell=patch, exclusive=axis.ramp < patch)


def plan_whole_windows(shape: tuple[int, int], options: Options, patch: int) -> Plan:
    """Return windows whose results have one cell per window.

    If the windows do not divide the scene evenly, they overlap as little as possible.

    Args:
        shape: Height and width of the scene in pixels.
        options: Options with numbers for the windows; the stride is an upper bound.
        patch: Patch size of the model in pixels.

    Raises:
        ConfigError: The windows are not possible.
    """
    crop, stride = _numbers(options)
    if options.margin:
        raise ConfigError(f"margin must be 0 if each window gets one vector, got {options.margin}.")
    axes = []
    for length in shape:
        span = plan_axis(length, crop, stride, multiple=patch).size
        count = max(1, -(-(length - span) // stride) + 1)
        firsts = tuple(round(number * (length - span) / max(1, count - 1)) for number in range(count))
        axes.append(WindowAxis(count, 1, tuple(range(count)), 0, 0, firsts=firsts, span=span, image=length))
    return Plan(axes[0], axes[1])


def _numbers(options: Options) -> tuple[int, int]:
    crop, stride = options.crop, options.stride
    if crop is None or stride is None:
        raise ConfigError("crop and stride must be numbers. Call Options.settle first.")
    return crop, stride
