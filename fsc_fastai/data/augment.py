"Transforms of the images of an episode"
# No `from __future__ import annotations`: fastai dispatches on the annotation of `encodes`.
import numpy as np
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorImage
from fastai.vision.augment import AffineCoordTfm, Resize, aug_transforms
from fastai.vision.core import imagenet_stats
from fasttransform.transform import Transform
from torch import Tensor

from .pages import empty_batch

__all__ = ['BytesToFloat', 'CenterCrop', 'InplaceNormalize', 'RandomView', 'episode_transforms']


class CenterCrop(Transform):
    "The middle `size`×`size` pixels of each image, outside training"
    order, split_idx = 5, 1

    def __init__(self,
        size: int, # Side of the result
    ):
        super().__init__()
        self.size = size

    def encodes(self, x: TensorImage):
        top, left = ((n - self.size)//2 for n in x.shape[-2:])
        return x[..., top:top + self.size, left:left + self.size]


class RandomView(AffineCoordTfm):
    "Affine transforms of training; in validation nothing, where fastai's would sample every pixel from where it is"
    def before_call(self, b, split_idx):
        if split_idx: self.do = False
        else: super().before_call(b, split_idx)


def _few(x: Tensor) -> int:
    "How many images stay in the cache of a CPU from one operation to the next"
    return max(1, 2**18 // x.shape[1:].numel())


class BytesToFloat(IntToFloatTensor):
    "fastai's `IntToFloatTensor`; on a CPU into large pages"
    def encodes(self, x: TensorImage):
        if not x.is_cpu: return x.float().div_(self.div)
        batch, bytes_ = empty_batch(x.shape, np.float32), x.as_subclass(Tensor)
        for part, of_bytes in zip(batch.split(_few(x)), bytes_.split(_few(x)), strict=True): part.copy_(of_bytes).div_(self.div)
        return batch.as_subclass(type(x))


class InplaceNormalize(Normalize):
    "fastai's `Normalize` in place, on the copy that `BytesToFloat` has made"
    def encodes(self, x: TensorImage):
        scale, shift = 1/self.std, -self.mean/self.std
        for part in x.as_subclass(Tensor).split(_few(x) if x.is_cpu else len(x)): part.mul_(scale).add_(shift)
        return x


def episode_transforms(
    size: int = 84, # Side of the images that the model sees
    do_flip: bool = True, # Mirror half of the training images; False where left and right matter, as in writing
    stats: tuple = imagenet_stats, # Means and standard deviations of the channels
) -> tuple[Resize, list[Transform]]:
    """The transforms of an item and of a batch that the field uses.

    All images are resized to 1.15·size squares (once: this is what the cache keeps). Validation and test see the middle;
    training sees a random part of each at a random zoom, with changes of brightness and contrast (Chen et al. 2019).
    """
    augmentations = aug_transforms(size=size, do_flip=do_flip, max_rotate=0., max_warp=0., min_zoom=1., max_zoom=1.5, p_affine=1.,
                                   max_lighting=.4)
    views = [RandomView(t.aff_fs, t.coord_fs, t.size, t.mode, t.pad_mode, t.mode_mask, t.align_corners)
             if isinstance(t, AffineCoordTfm) else t for t in augmentations]
    return (Resize(int(1.15 * size), method='squish'),
            [CenterCrop(size), *views, InplaceNormalize.from_stats(*stats, cuda=False)])
