"The field's backbones behave as timm's models do"
import pytest
import timm
import torch
from torch.testing import assert_close

from fsc_fastai.encode.backbones import default_cfgs

OURS = sorted(default_cfgs)
images = pytest.mark.parametrize('name', OURS)


@pytest.mark.parametrize('name, shape', [('conv4', (64, 5, 5)), ('conv4np', (64, 19, 19)), ('conv6', (64, 5, 5)),
                                         ('resnet10', (512, 3, 3)), ('resnet12', (512, 6, 6)), ('resnet18_fsc', (512, 3, 3))])
def test_map_at_84_px(name, shape):
    with torch.no_grad(): f = timm.create_model(name).eval().forward_features(torch.zeros(1, 3, 84, 84))
    assert tuple(f.shape[1:]) == shape


@images
def test_head(name):
    model = timm.create_model(name, num_classes=7, in_chans=1).eval()
    x = torch.randn(2, 1, 48, 48)
    f = model.forward_features(x)
    assert f.shape[1] == model.num_features
    assert_close(model.forward_head(f), model(x))
    assert model.forward_head(f, pre_logits=True).shape == (2, model.num_features)
    assert model.get_classifier().out_features == model.num_classes == 7
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)


@images
def test_features_only(name):
    torch.manual_seed(0); model = timm.create_model(name, features_only=True).eval()
    torch.manual_seed(0); whole = timm.create_model(name).eval()
    x = torch.randn(1, 3, 64, 64)
    maps = model(x)
    assert [f.shape[1] for f in maps] == model.feature_info.channels() == [o['num_chs'] for o in whole.feature_info]
    assert_close(maps[-1], whole.forward_features(x))
    last = timm.create_model(name, features_only=True, out_indices=(-1,)).eval()
    assert [f.shape for f in last(x)] == [maps[-1].shape]


@images
def test_configuration_for_timms_tools(name):
    model = timm.create_model(name)
    params = dict(model.named_parameters())
    assert model.pretrained_cfg['architecture'] == name and model.pretrained_cfg == model.default_cfg
    assert params[model.pretrained_cfg['first_conv'] + '.weight'].shape[1] == 3
    assert params[model.pretrained_cfg['classifier'] + '.weight'].shape[0] == 1000
    assert timm.data.resolve_data_config({}, model=model)['input_size'] == model.pretrained_cfg['input_size']


def test_no_name_of_timm_is_taken():
    assert timm.list_models(module='backbones') == OURS and 'resnet18' in timm.list_models(module='resnet')


def test_every_branch_of_a_residual_net_counts_from_the_start():
    model = timm.create_model('resnet10')
    assert all((m.weight == 1).all() for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_checkpointing_is_refused():
    with pytest.raises(ValueError, match='ResNet12'): timm.create_model('resnet12').set_grad_checkpointing()
