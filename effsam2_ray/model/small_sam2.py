"""SAM 2 with a mask decoder of any width: the class behind the demo weights."""

from __future__ import annotations

from typing import Any

from sam2.modeling.sam.transformer import TwoWayTransformer
from sam2.modeling.sam2_base import SAM2Base


class SmallSAM2(SAM2Base):
    """SAM2Base whose two-way transformer takes its size from the configuration.

    SAM2Base fixes 8 heads and a hidden width of 2048 there, more weights than all the rest of a small model.
    The names in the state dict are SAM2Base's.
    """

    def __init__(
        self,
        *,
        decoder_depth: int = 2,
        decoder_num_heads: int = 8,
        decoder_mlp_dim: int = 2048,
        **sam2_base_arguments: Any,
    ) -> None:
        """Build the model.

        Args:
            decoder_depth: layers of the two-way transformer.
            decoder_num_heads: heads of each of its attentions; must divide half the width.
            decoder_mlp_dim: hidden width of its MLPs.
            sam2_base_arguments: passed to SAM2Base as they are.
        """
        super().__init__(**sam2_base_arguments)
        self.sam_mask_decoder.transformer = TwoWayTransformer(
            depth=decoder_depth,
            embedding_dim=self.sam_prompt_embed_dim,
            num_heads=decoder_num_heads,
            mlp_dim=decoder_mlp_dim,
        )

    def set_image_size(self, image_size: int) -> None:
        """Take square pictures of another side from now on, in pixels.

        Raises:
            ValueError: `image_size` is not a multiple of the backbone's stride.
        """
        if image_size % self.backbone_stride:
            raise ValueError(f"image_size must be a multiple of {self.backbone_stride}; got {image_size}")
        grid = image_size // self.backbone_stride
        self.image_size = image_size
        self.sam_image_embedding_size = grid
        self.sam_prompt_encoder.input_image_size = (image_size, image_size)
        self.sam_prompt_encoder.image_embedding_size = (grid, grid)
        self.sam_prompt_encoder.mask_input_size = (4 * grid, 4 * grid)
