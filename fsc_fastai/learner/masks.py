"Masks that say where the object of an image is, brought to what the model sees of it"
from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data.episode_loader import EpisodicDL
from ..data.images import open_image
from ..data.loaders import EpisodeDataLoaders

__all__ = ['Masks', 'seen_masks']

Masks = str | os.PathLike | Callable[[Any], Any]
"A folder with `class/name.*` for each image `class/name.jpg`, or a function of its file to a mask: a file, picture or array"


def seen_masks(
    dls: EpisodeDataLoaders, # Loaders with the validation transforms of the images
    dl: EpisodicDL, # Loader of the images
    positions: Sequence[int], # Positions of the images in its set
    masks: Masks, # What is not black is the object
) -> Tensor:
    """Where the objects of some images are, in the pixels of the model `(n, height, width)`, bool.

    Raises `FileNotFoundError` for an image without a mask in the folder, `ValueError` for one with several, and for a mask of
    another size than its image.
    """
    pictures = [_mask(dl, i, masks) for i in positions]
    # masks come through the very transforms of the images; two more pictures tell what these make of black and of white
    pictures += [Image.new('L', pictures[0].size, value) for value in (0, 255)]
    x = torch.cat([batch[0].as_subclass(Tensor) for batch in dls.test_images(pictures)]).mean(1)
    return x[:-2] > (x[-2] + x[-1]) / 2


def _mask(dl: EpisodicDL, position: int, masks: Masks) -> Image.Image:
    "Black and white, in the size of its image"
    item = dl.items[position]
    file = item[0] if isinstance(item, tuple) else item
    found = masks(file) if callable(masks) else _in_folder(Path(masks), Path(file))
    if isinstance(found, Tensor): found = found.cpu().numpy()
    if not isinstance(found, np.ndarray): found = np.asarray(open_image(found)).max(-1)
    image = dl.dataset.tls[0][position]
    if found.shape != image.size[::-1]:
        raise ValueError(f'{file} is {image.size[1]} × {image.size[0]} pixels (height × width), its mask {found.shape}: a mask '
                         'has the size of its image')
    return Image.fromarray(np.where(found > 0, 255, 0).astype(np.uint8))


def _in_folder(folder: Path, file: Path) -> Path:
    "The one file of the folder with the class and the name of an image"
    found = sorted((folder/file.parent.name).glob(f'{glob.escape(file.stem)}.*'))
    if not found: raise FileNotFoundError(f'{file} has no mask: there is no {folder/file.parent.name/file.stem}.*')
    if len(found) > 1: raise ValueError(f'{file} has several masks: {", ".join(o.name for o in found)}')
    return found[0]
