"Transforms of the images of an episode"
# No `from __future__ import annotations`: fastai dispatches on the annotation of `encodes`.
import torch
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorCategory, TensorImage
from fastai.vision.augment import AffineCoordTfm, LightingTfm, RandTransform, Resize, aug_transforms
from fastai.vision.core import PILImage, PILImageBW, imagenet_stats
from fasttransform.transform import Transform
from PIL import Image
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from .image_config import ImageConfig, resampling
from .size import Size, as_size, sides, with_margin

__all__ = ['as_grey', 'BytesToFloat', 'CenterCrop', 'InplaceNormalize', 'MiddleResize', 'RandomLight', 'RandomView',
           'episode_transforms']


class _OfImages(Transform):
    """Leaves labels as they are by a method of its own.

    Else fastai looks for one in vain, and the error that tells it so holds the batch in a cycle until Python's collector comes.
    """
    def encodes(self, x: TensorCategory): return x


class CenterCrop(_OfImages):
    "The middle `size`×`size` pixels of each image, outside training. Raises `ValueError` for smaller images"
    order, split_idx = 5, 1

    def __init__(self,
        size: Size, # Side of the result, or (height, width)
    ):
        super().__init__()
        self.size = as_size('size', size)

    def encodes(self, x: TensorImage):
        height, width = sides(self.size)
        top, left = x.shape[-2] - height, x.shape[-1] - width
        if min(top, left) < 0:
            raise ValueError(f'CenterCrop({self.size}) of images of {x.shape[-2]}×{x.shape[-1]} px, which must be as large at '
                             'least: give size=… as your item_tfms make them')
        return x[..., top//2:top//2 + height, left//2:left//2 + width]


class MiddleResize(Resize):
    "fastai's `Resize`, whose cut is the middle of an image in training too: what comes out can be kept"
    def before_call(self, b, split_idx): super().before_call(b, 1)


class _OnlyInTraining(_OfImages, RandTransform):
    "A random transform that in validation does nothing, without drawing numbers or sampling every pixel from where it is"
    def before_call(self, b, split_idx):
        if split_idx: self.do = False
        else: super().before_call(b, split_idx)


class RandomView(_OnlyInTraining, AffineCoordTfm):
    "Affine transforms of training; fastai's, which look at the grid of pixels on the host, only where they have to"
    def encodes(self, x: TensorImage):
        size = tuple(x.shape[-2:]) if self.size is None else self.cp_size
        shrinks = all(before > 2 * after for before, after in zip(x.shape[-2:], size, strict=True))  # fastai smooths first
        if shrinks or self.coord_fs or self.mode != 'bilinear': return self._encode(x, self.mode)
        grid = affine_grid(self.mat, [*x.shape[:2], *size], align_corners=self.align_corners)
        return grid_sample(x, grid, self.mode, self.pad_mode, self.align_corners)


class RandomLight(_OnlyInTraining, LightingTfm):
    "Changes of brightness and contrast of training"


def as_grey(im: PILImage) -> PILImageBW:
    "An image in grey"
    return PILImageBW(im.convert('L'))


def _few(x: Tensor) -> int:
    "How many images stay in the cache of a CPU from one operation to the next"
    return max(1, 2**19 // x.shape[1:].numel())


class BytesToFloat(_OfImages, IntToFloatTensor):
    "fastai's `IntToFloatTensor`, on a CPU a few images at a time, so that they are in its cache for the division"
    def encodes(self, x: TensorImage):
        if not x.is_cpu: return x.float().div_(self.div)
        bytes_ = x.as_subclass(Tensor)
        batch, few = torch.empty(bytes_.shape), _few(bytes_)
        for part, of_bytes in zip(batch.split(few), bytes_.split(few), strict=True): part.copy_(of_bytes).div_(self.div)
        return batch.as_subclass(type(x))


class InplaceNormalize(_OfImages, Normalize):
    "fastai's `Normalize` in place, on the copy that `BytesToFloat` has made"
    mean: Tensor
    std: Tensor

    def encodes(self, x: TensorImage):
        batch = x.as_subclass(Tensor)
        if self.mean.device != batch.device: self.mean, self.std = self.mean.to(batch.device), self.std.to(batch.device)
        scale, shift = 1/self.std, -self.mean/self.std
        for part in batch.split(_few(batch) if batch.is_cpu else len(batch)): part.mul_(scale).add_(shift)
        return x


def _only_in_training(t: RandTransform) -> RandTransform:
    "fastai's `t`, an affine transform or one of lighting, as a transform that does nothing in validation"
    if isinstance(t, LightingTfm): return RandomLight(t.fs)
    return RandomView(t.aff_fs, t.coord_fs, t.size, t.mode, t.pad_mode, t.mode_mask, t.align_corners)


def resized(
    images: ImageConfig, # What the weights of a backbone were trained on
    size: Size | None = None, # Side of the result, or (height, width); None: with the margin that is cut off later
) -> MiddleResize:
    "Images in the shape and by the interpolation that the backbone was trained with"
    height, width = sides(images.resize if size is None else size)
    filters = resampling(images.interpolation), Image.Resampling.NEAREST
    return MiddleResize((height, width), method=images.fit, resamples=filters)


def episode_transforms(
    size: Size | None = None, # Side of the images that the model sees, or (height, width); None: 84, or as `images` says
    do_flip: bool = True, # Mirror half of the training images; False where left and right matter, as in writing
    stats: tuple | None = None, # Means and standard deviations of the channels; None: ImageNet's, or as `images` says
    images: ImageConfig | None = None, # What the weights of the backbone were trained on, `ImageConfig.of(arch)`
) -> tuple[Resize, list[Transform]]:
    """The transforms of an item and of a batch that the field uses.

    All images are resized to 1.15·size squares (once: this is what the cache keeps), or to what `images` says. Validation and
    test see the middle; training sees a random part of each at a random zoom, with changes of brightness and contrast (Chen et
    al. 2019).
    """
    size = as_size('size', size or (images.size if images else 84))
    if stats is None: stats = (images.mean, images.std) if images else imagenet_stats
    resize = resized(images.at(size)) if images else Resize(with_margin(size), method='squish')
    augmentations = aug_transforms(size=size, do_flip=do_flip, max_rotate=0., max_warp=0., min_zoom=1., max_zoom=1.5, p_affine=1.,
                                   max_lighting=.4)
    return (resize,
            [CenterCrop(size), *map(_only_in_training, augmentations), InplaceNormalize.from_stats(*stats, cuda=False)])
