"A tiny backbone whose weights say that they were trained on images of 32 px with means and deviations of 0.5; nobody has them"
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from fsc_fastai.encode.backbones import ConvNet

__all__ = ['ARCH', 'SIZE']

ARCH, SIZE = 'stub_of_halves', 32

default_cfgs = generate_default_cfgs({f'{ARCH}.tag': {
    'url': '', 'hf_hub_id': 'nobody/stub', 'num_classes': 10, 'input_size': (3, SIZE, SIZE), 'pool_size': None, 'crop_pct': .8,
    'interpolation': 'bicubic', 'mean': (.5, .5, .5), 'std': (.5, .5, .5), 'first_conv': 'stages.0.conv', 'classifier': 'fc'}})


@register_model
def stub_of_halves(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    feature_cfg = {'out_indices': (0, 1), 'flatten_sequential': True}
    return build_model_with_cfg(ConvNet, ARCH, pretrained, feature_cfg=feature_cfg, **{'depth': 2, 'width': 8, **kwargs})
