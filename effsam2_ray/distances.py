"""Attention rows to cosine distances.

Row i of the attention matrix says where patch i looks; two patches are close when they look at the same places. The
distance is ``1 - cosine``. Near 0, where clusters are told apart, it is a difference of nearly equal numbers, so the
products must be full float32: TF32 or bfloat16 inputs are off by about 1e-3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F


@contextmanager
def full_float32_products(device: torch.device) -> Iterator[None]:
    """Within the block, multiply float32 matrices in float32, whatever TF32, bfloat16 or autocast settings say.

    The settings belong to the process, so no other thread may change them or rely on TF32 meanwhile.
    """
    restore = _set_ieee_products()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        restore()


def _set_ieee_products() -> Callable[[], None]:
    """Switch reduced float32 products off; return what switches them back."""
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # torch before 2.9
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        return partial(torch.set_float32_matmul_precision, precision)
    # From 2.9 on, reading the one setting for all backends fails once they differ from each other.
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    precisions = [backend.fp32_precision for backend in backends]

    def set_all(values: Sequence[str]) -> None:
        for backend, value in zip(backends, values, strict=True):
            backend.fp32_precision = value

    set_all(["ieee"] * len(backends))
    return partial(set_all, precisions)


def unit_rows(attention: torch.Tensor) -> torch.Tensor:
    """Return the rows of `attention`, (N, N), each divided by its L2 norm: float32, on the same device."""
    return F.normalize(attention.float(), dim=1)


def cosine_distances(rows: torch.Tensor) -> np.ndarray:
    """Return ``1 - x_i . x_j`` for all pairs of rows, computed on the CPU.

    Args:
        rows: (N, D) unit rows.

    Returns:
        (N, N) float32, never negative, zero on the diagonal, exactly symmetric.
    """
    x = rows.detach().float().cpu().contiguous().numpy()
    # NumPy hands x @ x.T to BLAS syrk, which computes one triangle and mirrors it: half the work of a product, and
    # exactly symmetric. It also knows nothing of torch's reduced precisions.
    distances: np.ndarray = x @ x.T
    np.subtract(1.0, distances, out=distances)
    np.maximum(distances, 0.0, out=distances)
    np.fill_diagonal(distances, 0.0)
    return distances


def device_cosine_distances(rows: torch.Tensor) -> torch.Tensor:
    """Return the same distances as `cosine_distances`, on the device of `rows`."""
    x = rows.detach().float()
    with full_float32_products(x.device):
        distances = 1.0 - x @ x.T
    # A plain product may round (i, j) and (j, i) differently.
    distances = torch.minimum(distances, distances.T).clamp_(min=0.0)
    return distances.fill_diagonal_(0.0)
