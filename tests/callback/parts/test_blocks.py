"The blocks after which styles are changed, in our backbones and in timm's"
from functools import partial

import pytest
import torch
from torch import nn

from fsc_fastai.callback.parts.blocks import apart, changed, style_blocks
from fsc_fastai.encode.encoder import create_encoder
from fsc_fastai.methods import create_fsc_model


def model_of(arch, size=64, method='proto'): return create_fsc_model(method, arch, n_way=3, img_size=size)


@pytest.mark.parametrize('arch, expected', [
    ('conv4', ['stages.0', 'stages.1', 'stages.2']), ('resnet10', ['layer1', 'layer2', 'layer3']),
    ('resnet12', ['layer1', 'layer2', 'layer3']), ('convnext_atto', ['stages.0', 'stages.1', 'stages.2']),
    ('mobilenetv3_small_050', ['blocks.0', 'blocks.1', 'blocks.3']), ('regnetx_002', ['s1', 's2', 's3']),
    ('swin_tiny_patch4_window7_224', ['layers.0', 'layers.1', 'layers.2'])])
def test_blocks_are_the_feature_stages(arch, expected):
    model = model_of(arch, 224 if 'swin' in arch else 64).eval()
    names = style_blocks(model)
    assert names == [f'encoder.body.{name}' for name in expected]
    seen = {}
    def keep(name, maps):
        seen[name] = maps
        return maps + 1
    x = torch.randn(2, 3, *[224 if 'swin' in arch else 64]*2)
    plain = model.encode(x)
    with changed(model, {name: partial(keep, name) for name in names}): assert not torch.allclose(model.encode(x), plain)
    assert list(seen) == names and all(maps.shape[0] == 2 and maps.ndim == 4 for maps in seen.values())
    sides, channels = ([maps.shape[i] for maps in seen.values()] for i in (2, 1))
    assert sides == sorted(sides, reverse=True) and channels == sorted(channels)
    assert torch.equal(model.encode(x), plain) and not any(m._forward_hooks for m in model.modules())


def test_vit_has_a_style_only_in_its_published_form():
    model = model_of('vit_tiny_patch16_224', 64).eval()
    names = style_blocks(model)
    assert names == [f'encoder.body.blocks.{i}' for i in (2, 5, 8)]
    x = torch.randn(2, 3, 64, 64)
    with pytest.raises(ValueError, match='no style of a channel.*vit_view=True'), changed(model, {names[0]: torch.neg}):
        model.encode(x)
    assert not any(m._forward_hooks for m in model.modules())
    shapes = []
    def keep(maps):
        shapes.append(tuple(maps.shape))
        return maps
    with changed(model, dict.fromkeys(names, keep), vit_view=True): same = model.encode(x)
    assert shapes == [(2, 192, 4, 4)]*3 and torch.equal(same, model.encode(x))


def test_other_backbones_name_their_blocks():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    model = create_fsc_model('proto', create_encoder(net, img_size=8), n_way=3, img_size=8)
    with pytest.raises(ValueError, match=r'Sequential does not say which modules are its stages.*blocks='): style_blocks(model)
    assert style_blocks(model, ['encoder.body.1']) == ['encoder.body.1']
    with pytest.raises(ValueError, match="no block called 'layer1'.*encoder.body.0"): style_blocks(model, ['layer1'])


def test_streams_apart_are_as_passes_one_after_the_other():
    a, b = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    models = [model_of('resnet10', 32).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    alone = torch.cat([models[0].encode(x) for x in (a, b)])
    with apart(models[1]): together = models[1].encode(torch.cat([a, b]))
    torch.testing.assert_close(together, alone)
    for k, v in models[0].state_dict().items(): torch.testing.assert_close(models[1].state_dict()[k], v, msg=k)
    assert not any('forward' in vars(m) for m in models[1].modules())
