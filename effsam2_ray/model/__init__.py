"""The segmentation models: the only package that imports sam2 or segment_anything."""
