"Encoders from any backbone"
import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close

from fsc_fastai.encode import create_encoder
from fsc_fastai.methods import create_fsc_model

from ..methods.toys import feature_episode


@pytest.mark.parametrize('arch, size', [
    ('resnet18', 40), ('mobilenetv3_small_050', 40), ('convnext_atto', 64), ('efficientnet_lite0', 64),
    ('vit_tiny_patch16_224', 40), ('vit_tiny_patch16_224', 64), ('deit_tiny_distilled_patch16_224', 48),
    ('swin_tiny_patch4_window7_224', 56), ('mixer_s32_224', 64), ('levit_128s', 64)])
def test_any_timm_model_gives_maps(arch, size):
    encoder = create_encoder(arch, img_size=size).eval()
    with torch.no_grad(): f = encoder(torch.randn(2, 3, size, size))
    assert f.ndim == 4 and tuple(f.shape[1:]) == encoder.out_shape and encoder.num_features == f.shape[1]


def test_tokens_are_in_the_order_of_their_patches():
    encoder = create_encoder('vit_tiny_patch16_224', img_size=64).eval()
    with torch.no_grad(): f, tokens = encoder(x := torch.randn(1, 3, 64, 64)), encoder.body.forward_features(x)
    assert_close(f[0, :, 1, 2], tokens[0, 1 + 4 + 2])  # after the class token, row 1 of four patches, column 2


def test_channels_last_is_permuted():
    encoder = create_encoder('swin_tiny_patch4_window7_224', img_size=56).eval()
    with torch.no_grad(): f, last = encoder(x := torch.randn(1, 3, 56, 56)), encoder.body.forward_features(x)
    assert_close(f, last.movedim(-1, 1))


@pytest.mark.parametrize('arch', ['conv4', 'resnet10', 'vit_tiny_patch16_224'])
def test_other_image_sizes_than_in_training(arch):
    with torch.no_grad(): assert create_encoder(arch, img_size=64).eval()(torch.randn(1, 3, 96, 80)).shape[1:] != (64, 4, 4)


@pytest.mark.parametrize('arch', ['conv4', 'vit_tiny_patch16_224'])
def test_images_that_are_not_square(arch):
    model = create_fsc_model('relation', arch, img_size=(32, 64))
    assert model.encoder.out_shape[1:] == (2, 4)
    again = create_fsc_model(**json.loads(json.dumps(model.config)))
    assert again.encoder.out_shape == model.encoder.out_shape and again.encoder.img_size == (32, 64)
    assert create_encoder('conv4', img_size=(32, 32)).img_size == 32


def test_a_module_of_ones_own():
    assert create_encoder(nn.Conv2d(3, 4, 3), img_size=10).out_shape == (4, 8, 8)
    assert create_encoder(nn.Sequential(nn.Flatten(), nn.Linear(12, 9)), img_size=2).out_shape == (9, 1, 1)


def test_probing_leaves_the_module_as_it_was():
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    body[1].eval()
    before = {k: v.clone() for k, v in body.state_dict().items()}
    rng = torch.get_rng_state()
    create_encoder(body, img_size=8)
    assert body.training and not body[1].training
    assert_close(body.state_dict(), before)
    assert torch.equal(rng, torch.get_rng_state())


def test_an_encoder_is_not_wrapped_again():
    encoder = create_encoder('conv4', img_size=40)
    assert create_encoder(encoder, img_size=40) is encoder
    larger = create_encoder(encoder, img_size=84)
    assert larger.body is encoder.body and larger.out_shape == (64, 5, 5) and larger.config['img_size'] == 84


@pytest.mark.parametrize('arch', ['conv4', 'conv4np'])
def test_image_too_small(arch):
    with pytest.raises(ValueError, match=f'{arch}.*8×8 px'): create_encoder(arch, img_size=8)


def test_missing_pretrained_weights_are_named():
    with pytest.raises(ValueError, match="no pretrained weights for 'resnet10'"): create_encoder('resnet10', pretrained=True)


def checkpoints(state, folder):
    "One encoder's weights in the forms that users have them"
    yield state
    yield {'model': {f'module.encoder.{k}': v for k, v in state.items()}, 'opt': {}}
    yield {k.removeprefix('body.'): v for k, v in state.items()} | {'fc.weight': torch.zeros(3, 64)}
    torch.save({'epoch': 3, 'state': {k.replace('body.', 'backbone.'): v for k, v in state.items()}}, folder/'a.tar')
    yield folder/'a.tar'
    save_file(state, folder/'a.safetensors')
    yield str(folder/'a.safetensors')


def test_weights_from_a_checkpoint(tmp_path):
    state = create_encoder('conv4', img_size=32).state_dict()
    for checkpoint in checkpoints(state, tmp_path):
        assert_close(create_encoder('conv4', checkpoint, img_size=32).state_dict(), state)


def test_weights_from_a_whole_model():
    model = create_fsc_model('relation', 'conv4', img_size=32)
    assert_close(create_encoder('conv4', model.state_dict(), 32).state_dict(), model.encoder.state_dict())


def test_checkpoints_that_do_not_fit(tmp_path):
    state = create_encoder('conv4', img_size=32).state_dict()
    with pytest.raises(FileNotFoundError, match='nowhere.pth'): create_encoder('conv4', 'nowhere.pth')
    with pytest.raises(ValueError, match='lacks.*body.stages.4'): create_encoder('conv6', state)
    with pytest.raises(ValueError, match='stages.0.conv.weight.*shape'): create_encoder('conv4', state, in_chans=1, img_size=32)
    with pytest.raises(ValueError, match='no state dict'): create_encoder('conv4', {'epoch': 1})
    torch.save({'state': state, 'by': object}, tmp_path/'code.tar')
    with pytest.raises(ValueError, match='code.tar.*run code'): create_encoder('conv4', tmp_path/'code.tar')


def test_an_argument_that_the_backbone_lacks_is_an_error():
    with pytest.raises(TypeError, match='wdth'): create_encoder('conv4', wdth=3)
    assert create_encoder('conv4', width=3, img_size=32).num_features == 3


def test_a_transformer_in_a_few_shot_model():
    model = create_fsc_model('can', 'vit_tiny_patch16_224', img_size=64, encoder_kwargs={'depth': 1})
    support_x, support_y, query_x, _ = feature_episode(channels=3, size=64, n_shot=1, n_query=1)
    assert model.eval()(support_x, support_y, query_x).shape == (5, 5)


def test_features_do_not_depend_on_timms_classifier():
    torch.manual_seed(0); encoder = create_encoder('resnet10', img_size=32).eval()
    whole = timm.create_model('resnet10').eval()
    whole.load_state_dict(encoder.body.state_dict(), strict=False)
    x = torch.randn(1, 3, 32, 32)
    assert_close(encoder(x), whole.forward_features(x))
