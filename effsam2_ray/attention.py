"""One captured attention head, and the attention matrix rebuilt from it.

The encoder's fused attention never forms ``A = softmax(Q K^T / sqrt(d))``. What is captured are the queries and keys of
one head (1.1 MiB an image in half precision for Hiera-L), from which A is rebuilt where it is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CapturedHead:
    """Queries and keys of one head of one global-attention block, for one image.

    Attributes:
        q: (N, head_dim) queries, patches in row-major order, any floating dtype.
        k: (N, head_dim) keys.
        grid_hw: (rows, columns) of patches that show the picture; ``rows * columns == N``.
        rel_h: (N, rows) or None. Additive term for each key row (SAM 1's decomposed relative positions).
        rel_w: (N, columns) or None. Additive term for each key column.
    """

    q: torch.Tensor
    k: torch.Tensor
    grid_hw: tuple[int, int]
    rel_h: torch.Tensor | None = None
    rel_w: torch.Tensor | None = None

    def attention(self) -> torch.Tensor:
        """Return A, (N, N) float32, on the device of `q`; each row sums to 1."""
        q, k = self.q.float(), self.k.float()
        logits = (q * q.shape[-1] ** -0.5) @ k.T
        if self.rel_h is not None and self.rel_w is not None:
            rows, columns = self.grid_hw
            bias = self.rel_h.float()[:, :, None] + self.rel_w.float()[:, None, :]  # (N, rows, columns)
            logits = logits + bias.reshape(len(q), rows * columns)
        return logits.softmax(dim=-1)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> CapturedHead:
        """Return the same head on `device`, cast to `dtype` where one is given."""

        def move(x: torch.Tensor | None) -> torch.Tensor | None:
            return None if x is None else x.to(device=device, dtype=dtype or x.dtype)

        q, k = (
            self.q.to(device=device, dtype=dtype or self.q.dtype),
            self.k.to(device=device, dtype=dtype or self.k.dtype),
        )
        return CapturedHead(q, k, self.grid_hw, move(self.rel_h), move(self.rel_w))
