"""Random fields: fractal noise without periodic edges, and numbers that depend on an integer key only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def fractal(
    rng: np.random.Generator, shape: tuple[int, int], exponent: float = 2.0, scale: float = 100.0
) -> FloatArray:
    """Return isotropic Gaussian noise with a power-law spectrum, zero mean and unit variance over many draws.

    Args:
        rng: Source of randomness.
        shape: (height, width) of the field.
        exponent: Amplitude falls with frequency ** -exponent: 1 is rough, 2 like terrain, 3 smooth.
        scale: Wavelength in pixels beyond which the spectrum is flat, so that a field has features of about this size.
    """
    # The inverse FFT is periodic: drawing a larger field and keeping a part of it leaves no matching opposite edges.
    margin = int(min(max(scale, 16), 96))
    full = tuple(fft.next_fast_len(length + margin, real=True) for length in shape)
    fy = fft.fftfreq(full[0]).astype(np.float32)[:, None]
    fx = fft.rfftfreq(full[1]).astype(np.float32)[None, :]
    amplitude = (fy**2 + fx**2 + (1 / scale) ** 2) ** np.float32(-exponent / 2)
    amplitude[0, 0] = 0
    spectrum = amplitude * fft.rfft2(rng.standard_normal(full, dtype=np.float32))
    field: FloatArray = fft.irfft2(spectrum, s=full)
    field /= field.std()
    return field[: shape[0], : shape[1]]


def smooth(field: NDArray[Any], sigma: float) -> FloatArray:
    """Return a Gaussian-blurred copy of a field [H, W] as float32; `sigma` in pixels."""
    return np.asarray(ndimage.gaussian_filter(field.astype(np.float32), sigma, mode="nearest", truncate=3.0))


def ramp(value: NDArray[Any], low: float, high: float) -> FloatArray:
    """Return a smooth step from 0 at `low` to 1 at `high` (the cubic 3t^2 - 2t^3)."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return (t * t * (3 - 2 * t)).astype(np.float32)


def uniform_of(key: IntArray, salt: int) -> FloatArray:
    """Return a number in [0, 1) for each integer key; another salt gives an independent set of numbers.

    Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    """
    x = key.astype(np.uint64) + np.uint64((salt * 0x9E3779B97F4A7C15) % 2**64)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    return ((x >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)
