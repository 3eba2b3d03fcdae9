"""What is known to be in a picture: objects by one or several people, and pixels that count for nobody."""

from __future__ import annotations

from dataclasses import dataclass

from effsam2_ray.errors import InputError
from effsam2_ray.rle import Rle
from effsam2_ray.uris import redact


class AnnotationError(InputError):
    """What is known of one picture cannot be used; the others can.

    Attributes:
        image_uri: the picture.
        annotation_id: the annotation's own identifier, None where the whole picture is concerned.
    """

    def __init__(self, image_uri: str, problem: str, annotation_id: str | None = None):
        which = "" if annotation_id is None else f", annotation {annotation_id}"
        super().__init__(f"{redact(image_uri)}{which}: {problem}")
        self.image_uri, self.problem, self.annotation_id = image_uri, problem, annotation_id

    def __reduce__(self) -> tuple[type[AnnotationError], tuple[str, str, str | None]]:
        return type(self), (self.image_uri, self.problem, self.annotation_id)


@dataclass(frozen=True)
class ObjectSet:
    """The objects that one person (or one tool) marked in a picture.

    Attributes:
        masks: one an object; they may overlap, and an object below a pixel may be empty.
        areas: in pixels, as the annotations say (COCO's `area`), which decides small, medium and large.
        ids: the annotations' identifiers.
    """

    masks: tuple[Rle, ...]
    areas: tuple[float, ...]
    ids: tuple[str, ...]


@dataclass(frozen=True)
class ImageTruth:
    """Everything known of one picture; masks are in the frame of the picture as a viewer shows it.

    Attributes:
        image_uri: canonical URI.
        size_hw: (height, width) in pixels, EXIF orientation applied.
        annotators: one set of objects, several where several people segmented the picture (BSDS).
        crowds: regions of uncounted objects (COCO's `iscrowd`). As in COCO they are no objects to find, and a
            prediction on them is neither right nor wrong: they change no figure.
        void: pixels that count for nobody (255 in VOC); they are taken away from the predictions before any IoU.
        single_object: the annotation is one binary mask, as of salient and camouflaged objects.
    """

    image_uri: str
    size_hw: tuple[int, int]
    annotators: tuple[ObjectSet, ...]
    crowds: tuple[Rle, ...] = ()
    void: Rle | None = None
    single_object: bool = False

    @property
    def num_objects(self) -> int:
        """Objects of all annotators together."""
        return sum(len(annotator.masks) for annotator in self.annotators)
