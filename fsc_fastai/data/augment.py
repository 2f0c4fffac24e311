"Transforms of the images of an episode"
# No `from __future__ import annotations`: fastai dispatches on the annotation of `encodes`.
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
    """A transform of images with a method for labels, which it returns unchanged.

    Without such a method fastai raises and catches an error that keeps the batch in memory until Python's garbage collection.
    """
    def encodes(self, x: TensorCategory): return x


class CenterCrop(_OfImages):
    "Crop the middle `size`×`size` pixels of each image in validation. Raises `ValueError` for smaller images"
    order, split_idx = 5, 1

    def __init__(self,
        size: Size, # Side of the crop, or (height, width)
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
    "fastai's `Resize`, which crops the middle of an image in training too, so that the result can be cached"
    def before_call(self, b, split_idx): super().before_call(b, 1)


class _OnlyInTraining(_OfImages, RandTransform):
    "A random transform that does nothing in validation, where fastai's would draw random numbers or resample every pixel"
    def before_call(self, b, split_idx):
        if split_idx: self.do = False
        else: super().before_call(b, split_idx)


class RandomView(_OnlyInTraining, AffineCoordTfm):
    "fastai's affine transforms in training, without waiting for the device as fastai does, unless an image shrinks by half"
    def encodes(self, x: TensorImage):
        size = tuple(x.shape[-2:]) if self.size is None else self.cp_size
        shrinks = all(before > 2 * after for before, after in zip(x.shape[-2:], size, strict=True))  # fastai smooths first
        if shrinks or self.coord_fs or self.mode != 'bilinear': return self._encode(x, self.mode)
        grid = affine_grid(self.mat, [*x.shape[:2], *size], align_corners=self.align_corners)
        return grid_sample(x, grid, self.mode, self.pad_mode, self.align_corners)


class RandomLight(_OnlyInTraining, LightingTfm):
    "fastai's changes of brightness and contrast, in training"


def as_grey(im: PILImage) -> PILImageBW:
    "Convert an image to grey"
    return PILImageBW(im.convert('L'))


class BytesToFloat(_OfImages, IntToFloatTensor):
    "fastai's `IntToFloatTensor`, which turns bytes into numbers from 0 to 1, for the images of an episode"


class InplaceNormalize(_OfImages, Normalize):
    "fastai's `Normalize`, in place and on whatever device the images are on"
    mean: Tensor
    std: Tensor

    def encodes(self, x: TensorImage):
        if self.mean.device != x.device: self.mean, self.std = self.mean.to(x.device), self.std.to(x.device)
        x.as_subclass(Tensor).mul_(1/self.std).add_(-self.mean/self.std)
        return x


def _only_in_training(t: RandTransform) -> RandTransform:
    "fastai's `t`, an affine transform or one of lighting, as a transform that does nothing in validation"
    if isinstance(t, LightingTfm): return RandomLight(t.fs)
    return RandomView(t.aff_fs, t.coord_fs, t.size, t.mode, t.pad_mode, t.mode_mask, t.align_corners)


def resized(
    images: ImageConfig, # The images that the weights of a backbone were trained on
    size: Size | None = None, # Side of the result, or (height, width); None: with the margin that is cropped later
) -> MiddleResize:
    "A `Resize` to the shape, and by the interpolation, that the backbone was trained with"
    height, width = sides(images.resize if size is None else size)
    filters = resampling(images.interpolation), Image.Resampling.NEAREST
    return MiddleResize((height, width), method=images.fit, resamples=filters)


def episode_transforms(
    size: Size | None = None, # Side of the images that the model sees, or (height, width); None: 84, or as `images` says
    do_flip: bool = True, # Mirror half of the training images; False where left and right matter, as in writing
    stats: tuple | None = None, # Means and standard deviations of the channels; None: ImageNet's, or as `images` says
    images: ImageConfig | None = None, # The images that the weights of the backbone were trained on: `ImageConfig.of(arch)`
) -> tuple[Resize, list[Transform]]:
    """The item transform and the batch transforms that are usual in the field (Chen et al. 2019).

    Images are resized once to squares of 1.15·size, or as `images` says; this is what the cache keeps. Validation and test see
    the middle of each. Training sees a random part at a random zoom, with random brightness and contrast.
    """
    size = as_size('size', size or (images.size if images else 84))
    if stats is None: stats = (images.mean, images.std) if images else imagenet_stats
    resize = resized(images.at(size)) if images else Resize(with_margin(size), method='squish')
    augmentations = aug_transforms(size=size, do_flip=do_flip, max_rotate=0., max_warp=0., min_zoom=1., max_zoom=1.5, p_affine=1.,
                                   max_lighting=.4)
    return (resize,
            [CenterCrop(size), *map(_only_in_training, augmentations), InplaceNormalize.from_stats(*stats, cuda=False)])
