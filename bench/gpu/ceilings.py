"""What the device can do: matrix products, copies, and the attention kernels that it takes."""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.profiler import ProfilerActivity, profile

from bench.gpu.setting import Measurement, Setting, Work, precision
from bench.gpu.timing import time_once

SIDE, QUICK_SIDE = 8192, 512
"""Rows and columns of the matrices."""
COPIED, QUICK_COPIED = 2**32, 2**24
"""Bytes that a copy reads."""
HEADS, WIDTH = 12, 64
"""Heads of the base model, and their width, which all sizes share."""
PRODUCT = "matrix product"


def measure_ceilings(setting: Setting) -> None:
    """Measure matrix products, a copy within the device, and one from pinned memory to it."""
    side = QUICK_SIDE if setting.quick else SIDE
    for name, dtype, matmul in (("bf16", torch.bfloat16, "medium"), ("float32 medium", torch.float32, "medium"),
                                ("float32", torch.float32, "highest")):  # fmt: skip
        a, b = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        with precision(matmul):
            seconds = _best(setting, lambda a=a, b=b, out=out: torch.mm(a, b, out=out))
        setting.add(Measurement(f"{PRODUCT}, {name}", "", 2 * side**3 / seconds / 1e12, "TFLOP/s"))
    _measure_copies(setting)
    setting.release()
    _list_attention(setting)
    setting.release()


def _measure_copies(setting: Setting) -> None:
    count = QUICK_COPIED if setting.quick else COPIED
    source = torch.zeros(count, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    seconds = _best(setting, lambda: target.copy_(source))
    setting.add(Measurement("copy, read and written", "", 2 * count / seconds / 1e9, "GB/s"))
    if setting.is_cuda:
        host = torch.zeros(count // 16, dtype=torch.uint8, pin_memory=True)
        seconds = _best(setting, lambda: target[: len(host)].copy_(host, non_blocking=True))
        setting.add(Measurement("copy from pinned memory", "", len(host) / seconds / 1e9, "GB/s"))
    else:
        setting.leave_out("copy from pinned memory", "no GPU")


def _best(setting: Setting, work: Work) -> float:
    """Return the median seconds of a few calls, after some that do not count."""
    for _ in range(1 if setting.quick else 5):
        work()
    return statistics.median(time_once(setting, work) for _ in range(2 if setting.quick else 10))


def _list_attention(setting: Setting) -> None:
    """Note which kernels attention takes, forward and backward, by number of tokens and mask."""
    batch = 1 if setting.quick else 8
    for pixels in (64,) if setting.quick else (224, 512):
        tokens = 2 * (pixels // 16) ** 2
        mask = torch.ones(batch, 1, 1, tokens, dtype=torch.bool, device=setting.device)
        mask[0, ..., tokens // 2 :] = False
        for case, keys in (("no mask", None), ("modality mask", mask)):
            shape = (batch, HEADS, tokens, WIDTH)
            q, k, v = (setting.random(*shape, seed=n).to(torch.bfloat16).requires_grad_() for n in range(3))
            try:
                chosen = SDPBackend(torch._fused_sdp_choice(q, k, v, attn_mask=keys)).name
            except (RuntimeError, ValueError) as error:
                chosen = f"not known ({error})"
            names = _profile(setting, q, k, v, keys)
            remark = f"{chosen.lower()}: {', '.join(names)}"
            setting.add(Measurement(f"attention, {tokens} tokens, {case}", "", None, "", remark=remark))


def _profile(setting: Setting, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> list[str]:
    """Return the two longest kernels of attention and its backward pass; on a CPU the two longest operations."""

    def attend() -> None:
        F.scaled_dot_product_attention(q, k, v, attn_mask=mask).sum().backward()

    attend()
    setting.synchronise()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.is_cuda else [])]) as profiler:
        attend()
        setting.synchronise()
    spent: dict[str, float] = {}
    for event in profiler.events():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu == setting.is_cuda and "Backward0" not in event.name:
            time = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            spent[event.name] = spent.get(event.name, 0.0) + time
    return [name[:70] for name in sorted(spent, key=spent.__getitem__, reverse=True)[:2]]
