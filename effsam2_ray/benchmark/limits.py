"""What a device can do at most, measured here: products a second and bytes a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from effsam2_ray.benchmark.timing import Spread, interleave
from effsam2_ray.distances import full_float32_products


@dataclass(frozen=True)
class Limits:
    """Best sustained rates of one device.

    Attributes:
        float32_flops: FLOP/s of a large float32 product without TF32; a multiplication with its addition counts two.
        half_flops: the same in the type that the model runs in; None where that is float32.
        bytes_per_s: bytes read plus bytes written a second by a copy that fits no cache.
    """

    float32_flops: float
    half_flops: float | None
    bytes_per_s: float

    def flops(self, in_half: bool) -> float:
        """Return the limit for products in the model's type, or in float32."""
        return self.half_flops if in_half and self.half_flops else self.float32_flops


def measure_limits(device: torch.device, dtype: torch.dtype, rounds: int = 7) -> Limits:
    """Measure a device; takes a second or two on a CPU."""
    side, copied_bytes = (1536, 256 << 20) if device.type == "cpu" else (8192, 4 << 30)
    with full_float32_products(device):
        float32 = _product_flops(device, torch.float32, side, rounds)
    half = None if dtype == torch.float32 else _product_flops(device, dtype, side, rounds)
    source = torch.ones(copied_bytes // 4, device=device)
    target = torch.empty_like(source)
    seconds = _fastest(lambda: target.copy_(source), device, rounds)
    return Limits(float32, half, 2 * copied_bytes / seconds)


def _product_flops(device: torch.device, dtype: torch.dtype, side: int, rounds: int) -> float:
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / _fastest(lambda: a @ b, device, rounds)


def _fastest(function: Callable[[], object], device: torch.device, rounds: int) -> float:
    """Return the lower quartile of the seconds: a limit is what is reached undisturbed."""
    function()
    taken = interleave({"": function}, rounds, device=str(device))
    return Spread.of(taken[""]).low
