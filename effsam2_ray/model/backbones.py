"""The official weights: where their files are, how a file is recognised, which attention head is captured.

Only one head rests on the method's source ("Head 2 Layer 22" of Hiera-L), and even there the block named is windowed
and has no attention between all patches; block 23 is the nearest that has. All defaults are unverified until
a backbone's heads have been searched; such a table comes in through `load_heads_table`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from effsam2_ray.errors import ConfigError, InputError
from effsam2_ray.model.interface import Head
from effsam2_ray.storage import read_bytes
from effsam2_ray.uris import redact_text

_LARGE = "unverified: the source's head 2 of layer 22 (windowed) moved to the nearest global block"
_HIERA = "unverified: first global block and head 2, by analogy with Hiera-L"
_VIT = "unverified: global block nearest half the depth and head 2, by analogy with Hiera-L"

_SAM2 = "https://dl.fbaipublicfiles.com/segment_anything_2/"
_SAM1 = "https://dl.fbaipublicfiles.com/segment_anything/"


@dataclass(frozen=True)
class Backbone:
    """One official set of weights.

    Attributes:
        name: what `--weights` calls it.
        family: `sam2` or `sam1`.
        embed_dim: channels after the patch embedding; with `depth` it tells the backbones apart.
        depth: number of encoder blocks.
        global_blocks: blocks with attention between all patches, 0-based.
        num_heads: heads of each of those blocks.
        head_dim: channels of one head there.
        default_head: (block, head) captured unless asked otherwise.
        head_source: where that default comes from.
        config: SAM 2's model configuration inside the sam2 package; segment_anything's registry key for SAM 1.
        url: the official file.
        sha256: digest of that file.
    """

    name: str
    family: Literal["sam2", "sam1"]
    embed_dim: int
    depth: int
    global_blocks: tuple[int, ...]
    num_heads: int
    head_dim: int
    default_head: Head
    head_source: str
    config: str
    url: str
    sha256: str


def _sam2(size: str, letter: str, digests: tuple[str, str], head_source: str, *shape: Any) -> list[Backbone]:
    """Return the SAM 2 and SAM 2.1 weights of one Hiera size; `shape` is embed_dim to head_dim."""
    embed_dim, depth, global_blocks, num_heads, head_dim = shape
    releases = (("sam2", "072824"), ("sam2.1", "092824"))
    return [
        Backbone(
            name=f"{release}_hiera_{size}",
            family="sam2",
            embed_dim=embed_dim,
            depth=depth,
            global_blocks=global_blocks,
            num_heads=num_heads,
            head_dim=head_dim,
            default_head=(global_blocks[0], 2),
            head_source=head_source,
            config=f"sam2:configs/{release}/{release}_hiera_{letter}.yaml",
            url=f"{_SAM2}{folder}/{release}_hiera_{size}.pt",
            sha256=digest,
        )
        for (release, folder), digest in zip(releases, digests, strict=True)
    ]


def _sam1(letter: str, file_tag: str, sha256: str, *shape: Any) -> Backbone:
    """Return SAM 1 weights of one ViT size; `shape` is embed_dim to head_dim."""
    embed_dim, depth, global_blocks, num_heads, head_dim = shape
    return Backbone(
        name=f"sam_vit_{letter}",
        family="sam1",
        embed_dim=embed_dim,
        depth=depth,
        global_blocks=global_blocks,
        num_heads=num_heads,
        head_dim=head_dim,
        default_head=(global_blocks[1], 2),
        head_source=_VIT,
        config=f"vit_{letter}",
        url=f"{_SAM1}sam_vit_{letter}_{file_tag}.pth",
        sha256=sha256,
    )


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        *_sam2(
            "tiny",
            "t",
            (
                "65b50056e05bcb13694174f51bb6da89c894b57b75ccdf0ba6352c597c5d1125",
                "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
            ),
            _HIERA,
            *(96, 12, (5, 7, 9), 4, 96),
        ),
        *_sam2(
            "small",
            "s",
            (
                "95949964d4e548409021d47b22712d5f1abf2564cc0c3c765ba599a24ac7dce3",
                "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
            ),
            _HIERA,
            *(96, 16, (7, 10, 13), 4, 96),
        ),
        *_sam2(
            "base_plus",
            "b+",
            (
                "d0bb7f236400a49669ffdd1be617959a8b1d1065081789d7bbff88eded3a8071",
                "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
            ),
            _HIERA,
            *(112, 24, (12, 16, 20), 8, 56),
        ),
        *_sam2(
            "large",
            "l",
            (
                "7442e4e9b732a508f80e141e7c2913437a3610ee0c77381a66658c3a445df87b",
                "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
            ),
            _LARGE,
            *(144, 48, (23, 33, 43), 8, 72),
        ),
        _sam1(
            "b",
            "01ec64",
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
            *(768, 12, (2, 5, 8, 11), 12, 64),
        ),
        _sam1(
            "l",
            "0b3195",
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
            *(1024, 24, (5, 11, 17, 23), 16, 64),
        ),
        _sam1(
            "h",
            "4b8939",
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
            *(1280, 32, (7, 15, 23, 31), 16, 80),
        ),
    )
}


def load_heads_table(source: str) -> dict[str, tuple[Head, str]]:
    """Read a table of heads.

    Args:
        source: path or fsspec URI of JSON ``{KEY: {"block": B, "head": H, "source": TEXT}, ...}``; KEY is the sha256 of
            a weights file or a name; `source` is optional, other entries of the inner object are ignored.

    Returns:
        ((block, head), source text) by key.

    Raises:
        ConfigError: it cannot be read or has another shape.
    """
    shown = redact_text(source)
    try:
        table = json.loads(read_bytes(source))
    except (OSError, ValueError, InputError) as error:
        raise ConfigError(f"cannot read the table of heads {shown}: {redact_text(str(error))}") from error
    if not isinstance(table, Mapping):
        raise ConfigError(f"the table of heads {shown} must be a JSON object; got {type(table).__name__}")
    heads: dict[str, tuple[Head, str]] = {}
    for key, entry in table.items():
        block, head = (entry.get("block"), entry.get("head")) if isinstance(entry, Mapping) else (None, None)
        if not isinstance(block, int) or not isinstance(head, int):
            raise ConfigError(
                f'the table of heads {shown} needs {{"block": int, "head": int}} for {key}; got {entry!r}'
            )
        heads[str(key)] = ((block, head), str(entry.get("source", f"table {shown}")))
    return heads
