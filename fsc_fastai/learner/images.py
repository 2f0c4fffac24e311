"Check that the loaders' images match those that pretrained weights were trained on"
from __future__ import annotations

import warnings

from ..data.image_config import statistics_text
from ..data.loaders import EpisodeDataLoaders
from ..data.size import size_text
from ..encode.encoder import Encoder

__all__ = ['check_images']


def check_images(
    dls: EpisodeDataLoaders, # Loaders of the images
    encoder: Encoder, # An encoder, with `trained_on` if its weights are pretrained
    of_timm: bool = False, # The weights are timm's own, so that another size is worth a warning
) -> None:
    """Raise `ValueError`, with the remedy, for images with other statistics than those of the weights; warn of another size.

    Another size is an error, too, if the size of the network is fixed.
    """
    wanted, (mean, std) = encoder.trained_on, dls.statistics
    if wanted is None: return
    remedy = (f'EpisodeDataLoaders.from_folder(…, arch={encoder.name!r}) gives images as these weights know them; where the '
              'difference is meant, fsc_learner(…, check_images=False) lets it pass')
    if wanted.other_statistics(mean, std):
        raise ValueError(f'the weights of {encoder.name} were trained on images of {statistics_text(wanted.mean, wanted.std)}, '
                         f'the loaders normalise by {statistics_text(mean, std)}. {remedy}')
    if dls.img_size == wanted.size: return
    sizes = (f'the weights of {encoder.name} were trained on images of {size_text(wanted.size)}, '
             f'the loaders give {size_text(dls.img_size)}')
    if wanted.fixed and not getattr(encoder.body, 'dynamic_img_size', False):
        raise ValueError(f'{sizes}, and the size of this network is fixed. {remedy}')
    if of_timm: warnings.warn(f'{sizes}, on which they may be far less accurate. {remedy}', stacklevel=3)
