"Images as they were before they were cut and resized, for figures at their own size"
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastai.vision.augment import Resize
from PIL import Image

from ..data.augment import CenterCrop, RandomView
from ..data.images import open_image, opener_of
from ..data.loaders import EpisodeDataLoaders
from ..data.size import resized_box
from ..explain.overlay import Original

__all__ = ['originals_of', 'originals_of_episode']


def originals_of(
    dls: EpisodeDataLoaders, # Loaders with the validation transforms of the model's images
    items: Sequence[Any], # Files, PIL images, arrays or tensors
) -> list[Original] | None:
    "Images as they are, with what the model sees of them; None where the loaders open or cut images in a way of their own"
    opener = opener_of(dls.valid.dataset)
    return None if opener is None else _placed(dls, [open_image(item, opener.orient, opener.white) for item in items])


def originals_of_episode(
    dls: EpisodeDataLoaders, # Loaders with this first validation episode
    positions: Sequence[int], # Positions of its images in the set
) -> list[Original] | None:
    "The same for images of the validation set"
    if opener_of(dls.valid.dataset) is None: return None
    return _placed(dls, [dls.valid.dataset.tls[0][i] for i in positions])


def _placed(dls: EpisodeDataLoaders, images: Sequence[Image.Image]) -> list[Original] | None:
    tfms = [*dls.valid.after_item.fs, *dls.valid.after_batch.fs]
    resizes, crops = [t for t in tfms if isinstance(t, Resize)], [t for t in tfms if isinstance(t, CenterCrop)]
    others = [t for t in tfms if getattr(t, 'size', None) is not None and not isinstance(t, Resize | CenterCrop | RandomView)]
    if len(resizes) != 1 or len(crops) > 1 or others: return None
    width, height = resizes[0].size
    size = crops[0].size if crops else (height, width)
    return [Original.of(im, resized_box(im.size, (width, height), resizes[0].method, size)) for im in images]
