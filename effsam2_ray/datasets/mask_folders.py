"""Folders of pictures beside folders of masks, one mask file a picture, paired by their names.

Read as published (folder names in any case, at any depth): `images/` + `masks/`; `Imgs/` + `GT/` (SOC, NC4K, ECSSD);
`RGB/` + `GT/` (SIP); `Image/` + `GT_Object/` and `GT_Instance/` (COD10K); `Images/Test/` + `GT/` (CAMO); `imgs/` +
`gt/` (ILSO1K); `DUTS-TE-Image/` + `DUTS-TE-Mask/`; `JPEGImages/` + `SegmentationObject/` (VOC). Other folders (depth,
edges, SegmentationClass) are passed over.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from effsam2_ray.datasets.files import Files, read_file, some, stem
from effsam2_ray.datasets.frames import fit_orientation, read_frame, upright
from effsam2_ray.datasets.ground_truth import GroundTruth
from effsam2_ray.datasets.label_maps import MaskKind, decode_mask, mask_objects, open_mask
from effsam2_ray.errors import InputError, MaskError
from effsam2_ray.metrics.truth import AnnotationError, ImageTruth, ObjectSet
from effsam2_ray.rle import encode
from effsam2_ray.storage import StorageOptions
from effsam2_ray.uris import redact

Role = Literal["image", "object", "instance"]

_NAMES: dict[Role, frozenset[str]] = {
    "image": frozenset("image images img imgs rgb jpegimages picture pictures photo photos".split()),
    "instance": frozenset(
        "instance instances gtinstance gtinstances instancegt instancemask instancemasks segmentationobject".split()
    ),
    "object": frozenset(
        "mask masks gt gts gtobject objectgt groundtruth groundtruths groundtruthmask label labels labelmaps "
        "annotation annotations".split()
    ),
}
_ENDS: dict[Role, tuple[str, ...]] = {"image": ("image", "images", "imgs"), "object": ("mask", "masks")}
_MASK_ENDS = re.compile(r"[-_ ](mask|masks|gt|seg|segmentation|label|labels|instance|instances|object)$", re.IGNORECASE)


@dataclass(frozen=True)
class MaskRecord:
    """One picture and its mask file; `version` is that of the latter."""

    image_uri: str
    mask_uri: str
    version: str
    kind: MaskKind = "auto"

    def load(self, storage_options: StorageOptions = None, image_bytes: bytes | None = None) -> ImageTruth:
        """Return the objects of the mask file; errors as `ImageRecord.load`."""
        frame = read_frame(self.image_uri, storage_options, image_bytes)
        try:
            image = open_mask(read_file(self.mask_uri, storage_options, self.image_uri))
            width, height = image.size
            orientation = fit_orientation(self.image_uri, frame, (height, width))
            file = decode_mask(image)
            found = mask_objects(dataclasses.replace(file, values=upright(file.values, orientation)), self.kind)
        except MaskError as error:
            raise AnnotationError(self.image_uri, f"mask {redact(self.mask_uri)}: {error}") from error
        return ImageTruth(
            image_uri=self.image_uri,
            size_hw=frame.shown_hw,
            annotators=(
                ObjectSet(
                    found.masks, tuple(float(mask.area) for mask in found.masks), tuple(str(n) for n in found.labels)
                ),
            ),
            void=None if found.void is None else encode(found.void[None])[0],
            single_object=found.is_binary,
        )


def mask_roles(files: Files) -> dict[Role, list[str]]:
    """Return the pictures that lie in folders of images, of object masks and of instance masks."""
    roles: dict[Role, list[str]] = defaultdict(list)
    for name in files.pictures:
        role = _role(name)[0]
        if role is not None:
            roles[role].append(name)
    return dict(roles)


def open_mask_folders(
    files: Files, images: Files | None, format: str | None, storage_options: StorageOptions, name: str
) -> GroundTruth:
    """Return the data set of folders of pictures and masks.

    Args:
        files: of the data set.
        images: of the folder of pictures where it lies elsewhere; then `files` may be a folder of masks alone.
        format: `masks` for the object masks, `instances` for the instance masks (and every number in a file an object);
            by default the object masks where there are any, each file taken for what it looks like.
        storage_options: for later reading.
        name: for tables.

    Raises:
        InputError: there is no folder of pictures or none of masks.
    """
    roles = mask_roles(files)
    order: tuple[Role, Role] = ("instance", "object") if format == "instances" else ("object", "instance")
    masks = next((roles[role] for role in order if roles.get(role)), [])
    pictures = roles.get("image", []) if images is None else list(images.pictures)
    if images is not None and not masks:
        masks = list(files.pictures)
    if not pictures or not masks:
        lacking = "pictures (images, Imgs, RGB, JPEGImages, ...)" if masks else "masks (masks, GT, GT_Object, ...)"
        raise InputError(f"there is no folder of {lacking} below {redact(files.root)}")
    kind: MaskKind = {"masks": "binary", "instances": "labels"}.get(format or "", "auto")  # type: ignore[assignment]
    picture_files = files if images is None else images
    pairs, missing = _pair(pictures, masks)
    records = (
        MaskRecord(picture_files.uri(picture), files.uri(mask), files.versions[mask], kind) for picture, mask in pairs
    )
    bare = set(pictures) - {picture for picture, _ in pairs}
    notes = (f"{len(bare)} pictures have no mask and are left out ({some(bare)}).",) if bare else ()
    return GroundTruth(
        name=name,
        format=format or "masks",
        records=tuple(sorted(records, key=lambda record: record.image_uri)),
        missing=tuple(missing),
        notes=notes,
        storage_options=storage_options,
    )


def _pair(pictures: list[str], masks: list[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (picture, mask) names, and the masks without a picture.

    Names are compared with the folders between, and where that finds nothing, alone.
    """
    by_path = {_key(picture): picture for picture in pictures}
    by_stem: dict[str, list[str]] = defaultdict(list)
    for picture in pictures:
        by_stem[stem(picture)].append(picture)
    pairs: dict[str, str] = {}
    alone: list[str] = []
    for mask in masks:
        path, own = _key(mask), stem(mask)
        short = _MASK_ENDS.sub("", own)
        folder = path[: len(path) - len(own)]
        same = by_stem.get(own) or by_stem.get(short) or []
        found = by_path.get(path) or by_path.get(folder + short) or (same[0] if len(same) == 1 else None)
        if found is None:
            alone.append(mask)
        elif found in pairs:
            raise InputError(f"{found} has two masks, {pairs[found]} and {mask}")
        else:
            pairs[found] = mask
    return list(pairs.items()), alone


def _key(name: str) -> str:
    """Return a path without its suffix and without the folder that says what it is."""
    parts = name.split("/")
    index = _role(name)[1]
    folders = [part for place, part in enumerate(parts[:-1]) if place != index]
    return "/".join([*folders, stem(name)])


def _role(name: str) -> tuple[Role | None, int]:
    """Return what the outermost telling folder of a path says that a picture is, and which folder that is."""
    for index, folder in enumerate(name.split("/")[:-1]):
        plain = re.sub("[^a-z0-9]", "", folder.lower())
        for role, names in _NAMES.items():
            if plain in names:
                return role, index
        for role, ends in _ENDS.items():
            if plain.endswith(ends):
                return role, index
    return None, -1
