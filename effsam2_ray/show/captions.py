"""What is written beside the panels, in both forms of a sheet."""

from __future__ import annotations

from effsam2_ray.show.run_images import ShownImage

PANEL_TITLES = ("picture and prompts", "clusters, noise grey", "masks")
NO_CLUSTERS = "no clusters: these prompts do not come from attention"


def facts(image: ShownImage) -> str:
    """Return status, prompts, masks and size, for a caption."""
    if image.size_hw is None or image.status != "ok":
        return image.status
    height, width = image.size_hw
    prompts, masks = counted(len(image.point_coords), "prompt"), counted(len(image.masks), "mask")
    return f"{image.status} · {prompts} · {masks} · {width} x {height}"


def subtitle(image: ShownImage, num_shown: int, num_images: int) -> str:
    """Return preset, weights (of one of the images) and how many of the run's images are shown."""
    weights = f"weights {image.weights}" if image.weights else ""
    if image.weights == "demo":
        weights += " (a small demonstration model, not SAM 2.1)"
    preset = f"preset {image.preset}" if image.preset else ""
    return " · ".join(part for part in (preset, weights, f"{num_shown:,} of {counted(num_images, 'image')}") if part)


def failure_text(image: ShownImage) -> str:
    """Return a failed image's error, or that none is known."""
    return image.error or "no further message"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun: "1 mask", "2 masks"."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
