"""See the queries, keys and values that an encoder's blocks compute, without touching the blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def watch_qkv(blocks: nn.ModuleList, indices: Iterable[int], see: Callable[[int, Any, Tensor], None]) -> Iterator[None]:
    """Call ``see(block index, attention module, qkv)`` in each forward pass inside the `with` block.

    Args:
        blocks: the encoder's blocks, each with an `attn.qkv` projection.
        indices: which blocks to watch.
        see: gets the output of `qkv`, (B, rows, columns, 3 * heads * head_dim), and must copy what it keeps.
    """

    def watch(index: int) -> Any:
        block: Any = blocks[index]
        return block.attn.qkv.register_forward_hook(lambda _module, _args, qkv: see(index, block.attn, qkv))

    handles = [watch(index) for index in sorted(set(indices))]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
