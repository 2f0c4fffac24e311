"Pretrained weights: what they were trained on, files in anybody's names, and no network"
import json
import socket

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch.testing import assert_close

from fsc_fastai.data.image_config import ImageConfig
from fsc_fastai.encode import create_encoder
from fsc_fastai.methods import create_fsc_model

from .stub import ARCH, SIZE


@pytest.fixture
def state():
    "Weights in timm's names, with a classifier"
    torch.manual_seed(1)
    body = timm.create_model(ARCH)
    for name, buffer in body.named_buffers():
        if name.endswith('running_mean'): buffer.uniform_()
    return body.state_dict()


@pytest.fixture
def no_network(monkeypatch):
    "The names of hosts that were looked up, all in vain"
    asked = []
    def lookup(host, *args, **kwargs):
        asked.append(host)
        raise socket.gaierror(-2, 'Name or service not known')
    monkeypatch.setattr(socket, 'getaddrinfo', lookup)
    return asked


def test_an_encoder_knows_what_its_weights_were_trained_on(state):
    known = create_encoder(ARCH, state, SIZE).trained_on
    assert known == ImageConfig(SIZE, (.5, .5, .5), (.5, .5, .5), .8, 'crop', 'bicubic') == ImageConfig.of(ARCH)
    assert known.resize == 40 and known.at(64).resize == 80
    assert create_encoder(ARCH, img_size=SIZE).trained_on is None  # of random weights there is nothing to know
    assert create_encoder('conv4', create_encoder('conv4').state_dict()).trained_on is None  # nor of our own


@pytest.mark.parametrize('crop_mode, fit', [('center', 'crop'), ('squash', 'squish'), ('border', 'pad')])
def test_every_way_of_timms_to_cut(crop_mode, fit):
    body = timm.create_model(ARCH)
    body.pretrained_cfg = {**body.pretrained_cfg, 'crop_mode': crop_mode, 'interpolation': 'random', 'input_size': (3, 32, 48)}
    known = ImageConfig.of(body)
    assert (known.fit, known.interpolation, known.size, known.resize) == (fit, 'bicubic', (32, 48), (40, 60))


def test_files_in_timms_names(state, tmp_path):
    torch.save(state, tmp_path/'a.pth')
    save_file(state, tmp_path/'a.safetensors')
    for weights in (state, tmp_path/'a.pth', str(tmp_path/'a.safetensors')):
        encoder = create_encoder(ARCH, weights, SIZE)
        assert_close(encoder.body.state_dict(), {k: v for k, v in state.items() if not k.startswith('fc.')})
        assert sorted(encoder.loaded.unexpected) == ['fc.bias', 'fc.weight'] and not encoder.loaded.missing


def test_names_of_a_vendor_are_matched_by_position(state, tmp_path):
    vendor = {f'_part_{i}.{k.rpartition(".")[2]}': v for i, (k, v) in enumerate(state.items())}
    torch.save(vendor, tmp_path/'vendor.pth')
    with pytest.raises(ValueError, match=f'vendor.pth does not fit {ARCH}: it lacks.*remap=True .--remap.'):
        create_encoder(ARCH, tmp_path/'vendor.pth', SIZE)
    encoder = create_encoder(ARCH, tmp_path/'vendor.pth', SIZE, remap=True)
    assert_close(encoder.body.state_dict(), {k: v for k, v in state.items() if not k.startswith('fc.')})
    told = str(encoder.loaded)
    assert told.startswith('12 of 12 tensors loaded, all by their position, such as _part_0.weight as body.stages.0.conv.weight')
    assert 'left out: _part_14.weight, _part_15.bias' in told


def test_another_order_or_shape_is_no_vendors_name(state):
    names = list(state)
    swapped = {k: state[k] for k in [*names[:2], names[3], names[2], *names[4:]]}  # bias before weight, of one shape
    with pytest.raises(ValueError, match='at position 3 it has stages.0.norm.bias'):
        create_encoder(ARCH, swapped, SIZE, remap=True)
    with pytest.raises(ValueError, match=r'position 1 it has .*\(64, 3, 3, 3\), the encoder .*\(8, 3, 3, 3\)'):
        create_encoder(ARCH, create_encoder('conv4').state_dict(), SIZE, remap=True)
    with pytest.raises(ValueError, match='it has 2 tensors, the encoder 12'):
        create_encoder(ARCH, dict(list(state.items())[:2]), SIZE, remap=True)


def test_a_checkpoint_of_another_backbone_names_both(tmp_path):
    torch.save(timm.create_model('conv6').state_dict(), tmp_path/'conv6-1a2b.pth')
    with pytest.raises(ValueError, match='conv6-1a2b.pth, by its name of conv6, does not fit conv4: .*another.*stages.4'):
        create_encoder('conv4', tmp_path/'conv6-1a2b.pth')  # which holds all of conv4's tensors, and more
    torch.save({'arch': 'resnet12', 'state_dict': timm.create_model('resnet12').state_dict()}, tmp_path/'best.pth')
    with pytest.raises(ValueError, match='best.pth, by its name of resnet12, does not fit conv4: it lacks'):
        create_encoder('conv4', tmp_path/'best.pth')
    with pytest.raises(ValueError, match='conv4.*shape'):
        create_encoder('conv4', timm.create_model('conv4', width=32).state_dict())


def test_position_embeddings_are_fitted_to_the_size_of_the_images():
    state = timm.create_model('test_vit', img_size=160).state_dict()
    encoder = create_encoder('test_vit', state, 96)
    assert encoder.body.pos_embed.shape[1] == 1 + 36 != state['pos_embed'].shape[1]
    assert_close(encoder.body.blocks[0].attn.qkv.weight, state['blocks.0.attn.qkv.weight'])


def test_without_a_network_the_error_comes_at_once(no_network):
    with pytest.raises(ConnectionError, match=f"'{ARCH}' are not on this machine.*weights=FILE"): create_encoder(ARCH, True, SIZE)
    assert len(no_network) <= 2, 'one attempt'
    for arch, weights in (('hf-hub:nobody/else', True), (ARCH, 'hf-hub:nobody/else'), (ARCH, 'hf://nobody/else')):
        with pytest.raises(ConnectionError, match='does not answer'): create_encoder(arch, weights, SIZE)
    assert len(no_network) <= 8


def test_offline_by_choice_asks_nobody(no_network, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    with pytest.raises(ConnectionError, match='HF_HUB_OFFLINE is set'): create_encoder(ARCH, True, SIZE)
    assert not no_network


@pytest.mark.parametrize('repo, weights', [('stub', True), ('other', 'hf-hub:nobody/other')])
def test_weights_on_this_machine_need_no_network(repo, weights, state, no_network, monkeypatch, tmp_path):
    folder = tmp_path/f'models--nobody--{repo}'
    for part in ('refs', 'snapshots/0'): (folder/part).mkdir(parents=True)
    (folder/'refs'/'main').write_text('0')
    save_file(state, folder/'snapshots'/'0'/'model.safetensors')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    encoder = create_encoder(ARCH, weights, SIZE)
    assert_close(encoder.body.state_dict(), {k: v for k, v in state.items() if not k.startswith('fc.')})
    assert encoder.trained_on == ImageConfig.of(ARCH) and not no_network


def test_a_model_in_a_folder(state, tmp_path, no_network):
    save_file(state, tmp_path/'model.safetensors')
    cfg = {**timm.get_pretrained_cfg(ARCH).to_dict(), 'mean': [.4, .4, .4]}
    (tmp_path/'config.json').write_text(json.dumps({'architecture': ARCH, 'pretrained_cfg': cfg}))
    encoder = create_encoder(f'local-dir:{tmp_path}', True, SIZE)
    assert encoder.trained_on.mean == (.4, .4, .4) and not no_network
    assert encoder.config['arch'] == ARCH, 'a name that builds it anywhere'
    assert_close(encoder.body.stages[0].conv.weight, state['stages.0.conv.weight'])


def test_an_unknown_name_or_tag_offers_the_nearest():
    with pytest.raises(ValueError, match="no backbone 'resnet118': did you mean resnet18"): create_encoder('resnet118', True)
    with pytest.raises(ValueError, match=f"no weights of a backbone '{ARCH}.tga': did you mean {ARCH}.tag"):
        create_encoder(f'{ARCH}.tga', True)


def vit(pool=None, **kwargs): return create_encoder('test_vit', img_size=64, pool=pool, **kwargs).eval()


def test_class_token_patches_or_both():
    x = torch.randn(2, 3, 64, 64)
    encoder = vit('cls')
    with torch.no_grad():
        tokens = encoder.body.forward_features(x)
        for pool, wanted in dict(cls=tokens[:, 0], mean=tokens[:, 1:].mean(1),
                                 both=torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1), auto=tokens[:, 0]).items():
            again = create_encoder(encoder, img_size=64, pool=pool).eval()
            assert again.out_shape == (wanted.shape[1], 1, 1)
            assert_close(again(x)[..., 0, 0], wanted)
        assert create_encoder(encoder, img_size=64) is encoder


def test_by_what_the_backbone_was_trained_with():
    "timm's `global_pool`: patches with the norm behind their mean, a convolution behind the pooling, or plain maps"
    x = torch.randn(2, 3, 64, 64)
    for arch, kwargs in (('test_vit', dict(global_pool='avg')), ('mobilenetv3_small_050', {}), ('convnext_atto', {})):
        encoder = create_encoder(arch, img_size=64, pool='auto', **kwargs).eval()
        with torch.no_grad():
            wanted = encoder.body.forward_head(encoder.body.forward_features(x), pre_logits=True)
            assert_close(encoder(x)[..., 0, 0], wanted)
            if arch == 'test_vit': assert_close(create_encoder(encoder, img_size=64, pool='mean').eval()(x)[..., 0, 0], wanted)
    assert create_encoder(torch.nn.Conv2d(3, 4, 3), img_size=8, pool='auto').out_shape == (4, 6, 6)


def test_a_pool_that_there_is_not_is_an_error():
    with pytest.raises(ValueError, match="pool='cls': conv4 has no class token"): create_encoder('conv4', pool='cls')
    with pytest.raises(ValueError, match="pool='middle': choose from"): create_encoder('conv4', pool='middle')


def test_a_model_is_built_again_with_its_pool():
    model = create_fsc_model('proto', 'test_vit', img_size=64, encoder_kwargs=dict(pool='both'))
    again = create_fsc_model(**json.loads(json.dumps(model.config)))
    assert again.encoder.pool == 'both' and again.encoder.out_shape == model.encoder.out_shape
    larger = create_encoder(model.encoder, img_size=96)
    assert larger.pool == 'both' and larger.config['pool'] == 'both'
