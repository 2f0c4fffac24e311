"""The field's own backbones, registered with timm: `timm.create_model('conv4')` works once this module is imported.

| name | map at 84 px | from |
|---|---|---|
| `conv4`, `conv6` | 64 × 5 × 5 | Vinyals et al. 2016; Chen et al. 2019 |
| `conv4np` | 64 × 19 × 19 | the conv4 of RelationNet: pools only twice (Sung et al. 2018) |
| `resnet10`, `resnet18_fsc`, `resnet34_fsc` | 512 × 3 × 3 | Chen et al. 2019, Tseng et al. 2020 |
| `resnet12` | 512 × 6 × 6 | Hou et al. 2019 (cross attention network) |

timm's own `resnet18` and `resnet34` have the same layers and have pretrained weights; the field's `_fsc` twins differ in
their start: every residual branch counts from the first step (timm starts the last scale of each branch at zero).
"""
from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, register_model
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn

__all__ = ['Backbone', 'ConvBlock', 'ConvNet', 'ResNet12', 'ResNet12Block']


def _cfg(size: int, **kwargs: Any) -> dict[str, Any]:
    return {'url': '', 'num_classes': 1000, 'input_size': (3, size, size), 'pool_size': None, 'crop_pct': 0.875,
            'interpolation': 'bilinear', 'mean': IMAGENET_DEFAULT_MEAN, 'std': IMAGENET_DEFAULT_STD,
            'first_conv': 'conv1', 'classifier': 'fc', **kwargs}


default_cfgs = {
    **{name: _cfg(84, first_conv='stages.0.conv') for name in ('conv4', 'conv4np', 'conv6')},
    'resnet12': _cfg(84),
    **{name: _cfg(224) for name in ('resnet10', 'resnet18_fsc', 'resnet34_fsc')},
}


class Backbone(nn.Module, ABC):
    "timm's interface around `forward_features`: the classifier, and the attributes that timm's tools read"
    def __init__(self,
        num_features: int, # Channels of the feature map
        in_chans: int = 3, # Channels of the images
    ):
        super().__init__()
        self.num_features = self.head_hidden_size = num_features
        self.in_chans = in_chans

    def add_head(self,
        num_classes: int = 1000, # Outputs of the classifier; 0: no classifier
        global_pool: str = 'avg', # How the classifier pools the map
        drop_rate: float = 0., # Dropout before the classifier
    ) -> None:
        """Add the classifier and initialise as the field does: He's normal by fan-out for convolutions, 1 and 0 for batch norms.

        A subclass must call it last, because timm's `features_only` runs modules in the order of their registration.
        """
        self.drop_rate, self.num_classes = drop_rate, num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')
                if m.bias is not None: nn.init.zeros_(m.bias)

    def get_classifier(self) -> nn.Module:
        "The classifier, the last linear layer"
        return self.fc

    def reset_classifier(self,
        num_classes: int, # Outputs; 0: no classifier
        global_pool: str | None = None, # How it pools the map; None: as before
    ) -> None:
        "Replace the classifier"
        self.num_classes = num_classes
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        "Not offered by nets this small: `ValueError` where it is asked for"
        if enable: raise ValueError(f'{type(self).__name__} has no gradient checkpointing')

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        "Images to feature maps `(n, C, H, W)`"

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        "Feature maps `(n, C, H, W)` to class scores `(n, num_classes)`, or with `pre_logits` to the pooled features `(n, C)`"
        x = self.global_pool(x)
        if self.drop_rate: x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        "Images `(n, in_chans, height, width)` to class scores `(n, num_classes)`"
        return self.forward_head(self.forward_features(x))


class ConvBlock(nn.Module):
    "Convolution 3×3, batch norm, ReLU and optionally max-pool by 2"
    def __init__(self,
        n_in: int, # Channels in
        n_out: int, # Channels out
        padding: int = 1, # Padding of the convolution
        pool: bool = True, # End with a max-pool by 2
    ):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, padding=padding)
        self.norm = nn.BatchNorm2d(n_out)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        "Maps `(n, n_in, H, W)` to `(n, n_out, H', W')`"
        return self.pool(self.act(self.norm(self.conv(x))))


class ConvNet(Backbone):
    "A chain of `ConvBlock`s of one width: conv4, conv4np, conv6"
    def __init__(self,
        depth: int = 4, # Number of blocks
        n_pool: int = 4, # Number of first blocks that pool
        pad_pooled: bool = True, # Pad the convolutions of blocks that pool
        width: int = 64, # Channels of every block
        in_chans: int = 3, # Channels of the images
        **kwargs: Any, # `num_classes`, `global_pool`, `drop_rate`
    ):
        super().__init__(width, in_chans)
        self.stages = nn.Sequential(*[
            ConvBlock(width if i else in_chans, width, int(pad_pooled or i >= n_pool), i < n_pool) for i in range(depth)])
        self.feature_info = [{'num_chs': width, 'reduction': 2**min(i + 1, n_pool), 'module': f'stages.{i}'}
                             for i in range(depth)]
        self.add_head(**kwargs)

    def forward_features(self, x: Tensor) -> Tensor:
        "Images to feature maps `(n, width, H, W)`"
        return self.stages(x)


class ResNet12Block(nn.Module):
    "Three convolutions 3×3, the second with stride 2, and a projected shortcut"
    def __init__(self,
        n_in: int, # Channels in
        n_out: int, # Channels out
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.conv3 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.act1, self.act2, self.act3 = (nn.ReLU(inplace=True) for _ in range(3))
        self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride=2, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: Tensor) -> Tensor:
        "Maps `(n, n_in, H, W)` to `(n, n_out, H/2, W/2)`"
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        return self.act3(self.bn3(self.conv3(out)) + self.downsample(x))


class ResNet12(Backbone):
    "The residual net of the cross attention network (Hou et al. 2019): 3×3 stem, four blocks of three convolutions"
    def __init__(self,
        widths: tuple[int, int, int, int] = (64, 128, 256, 512), # Channels of the blocks
        in_chans: int = 3, # Channels of the images
        **kwargs: Any, # `num_classes`, `global_pool`, `drop_rate`
    ):
        super().__init__(widths[-1], in_chans)
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(ResNet12Block(n_in, n_out)) for n_in, n_out in pairwise((widths[0], *widths)))
        self.feature_info = [{'num_chs': n, 'reduction': 2**i, 'module': f'layer{i}' if i else 'act1'}
                             for i, n in enumerate((widths[0], *widths))]
        self.add_head(**kwargs)

    def forward_features(self, x: Tensor) -> Tensor:
        "Images to feature maps `(n, C, H/16, W/16)`"
        x = self.act1(self.bn1(self.conv1(x)))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def _convnet(name: str, pretrained: bool, depth: int = 4, **kwargs: Any) -> nn.Module:
    feature_cfg = {'out_indices': tuple(range(depth)), 'flatten_sequential': True}
    return build_model_with_cfg(ConvNet, name, pretrained, feature_cfg=feature_cfg, depth=depth, **kwargs)


def _resnet(name: str, pretrained: bool, layers: tuple[int, ...], **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(ResNet, name, pretrained, block=BasicBlock, layers=layers, zero_init_last=False, **kwargs)


@register_model
def conv4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    "Four blocks of convolution, batch norm, ReLU and pool; 64 channels"
    return _convnet('conv4', pretrained, **kwargs)


@register_model
def conv4np(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    "conv4 whose last two blocks do not pool, which leaves larger maps for a relation module"
    return _convnet('conv4np', pretrained, **{'n_pool': 2, 'pad_pooled': False, **kwargs})


@register_model
def conv6(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    "Six blocks of which the first four pool; 64 channels"
    return _convnet('conv6', pretrained, **{'depth': 6, **kwargs})


@register_model
def resnet10(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    "A ResNet with one basic block per stage, the backbone of the cross-domain benchmark"
    return _resnet('resnet10', pretrained, (1, 1, 1, 1), **kwargs)


@register_model
def resnet12(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    "The backbone of the cross attention network"
    return build_model_with_cfg(ResNet12, 'resnet12', pretrained, **kwargs)


@register_model
def resnet18_fsc(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    "The field's ResNet18: timm's layers, the field's start"
    return _resnet('resnet18_fsc', pretrained, (2, 2, 2, 2), **kwargs)


@register_model
def resnet34_fsc(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    "The field's ResNet34: timm's layers, the field's start"
    return _resnet('resnet34_fsc', pretrained, (3, 4, 6, 3), **kwargs)
