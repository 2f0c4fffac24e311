"Checkpoints under the names of the publications"
import pytest
import torch
from torch.testing import assert_close

from fsc_fastai.encode import create_encoder, load_reference_state
from fsc_fastai.methods import create_fsc_model

from ..methods.toys import feature_model

RESIDUAL = {'conv1': 'C1', 'bn1': 'BN1', 'conv2': 'C2', 'bn2': 'BN2', 'downsample.0': 'shortcut', 'downsample.1': 'BNshortcut'}


def randomized(model, seed=3):
    g = torch.Generator().manual_seed(seed)
    return {k: torch.randn(v.shape, generator=g) if v.is_floating_point() else v for k, v in model.state_dict().items()}


def published_resnet(state, n_layers):
    "Names of a residual encoder of Chen et al. 2019: one list of layers called trunk"
    first = {f'layer{s}': 4 + sum(n_layers[:s - 1]) for s in range(1, 5)}
    out = {}
    for name, value in state.items():
        stage, *rest = name.split('.')
        if stage in first:
            block, part, leaf = rest[0], '.'.join(rest[1:-1]), rest[-1]
            name = f'trunk.{first[stage] + int(block)}.{RESIDUAL[part]}.{leaf}'
        else: name = name.replace('conv1', 'trunk.0').replace('bn1', 'trunk.1')
        out['feature.' + name] = value
    return out


@pytest.mark.parametrize('arch, n_layers', [('resnet10', (1,)*4), ('resnet18_fsc', (2,)*4), ('resnet18', (2,)*4)])
def test_residual_encoders(arch, n_layers):
    model = create_fsc_model('proto', arch, img_size=32)
    state = randomized(model.encoder.body)
    report = load_reference_state(model, {'epoch': 7, 'state': published_resnet(state, n_layers)})
    assert not report.missing and not report.unexpected and len(report.loaded) == len(state)
    assert_close(model.encoder.body.state_dict(), state)


def test_conv_encoders_with_both_names_of_a_layer():
    encoder = create_encoder('conv4', img_size=32)
    state = randomized(encoder.body)
    published = {}
    for name, value in state.items():
        for part, alias in (('conv', 'C'), ('conv', 'trunk.0'), ('norm', 'BN'), ('norm', 'trunk.1')):
            if f'.{part}.' in name: published['feature.' + name.replace('stages', 'trunk').replace(part, alias)] = value
    report = load_reference_state(encoder, published)
    assert len(published) == 2 * len(state) and not report.missing and not report.unexpected
    assert_close(encoder.body.state_dict(), state)


def test_cross_attention_checkpoint_with_wrappers():
    model = create_fsc_model('can', 'resnet12', n_classes=3, img_size=48)
    state = randomized(model)
    ours = {'encoder.body.': 'base.', 'attention.shrink.': 'cam.conv1.conv.', 'attention.norm.': 'cam.conv1.bn.',
            'attention.expand.': 'cam.conv2.', 'classifier.': 'clasifier.'}
    published = {}
    for name, value in state.items():
        prefix = next(p for p in ours if name.startswith(p))
        published['module.' + ours[prefix] + name.removeprefix(prefix)] = value
    report = load_reference_state(model, {'state_dict': published, 'acc': 0.7, 'epoch': 1})
    assert not report.missing and not report.unexpected
    assert_close(model.state_dict(), state)


def test_report_names_what_was_not_placed():
    model = feature_model('relation')
    some = {'relation_module.fc2.weight': torch.ones(1, 8), 'relation_module.fc2.bias': torch.ones(1)}
    report = load_reference_state(model, {**some, 'classifier.weight': torch.ones(200, 6)})
    assert report.loaded == ['relation.fc2.weight', 'relation.fc2.bias']
    assert report.unexpected == ['classifier.weight']
    assert 'relation.fc1.weight' in report.missing and len(report.missing) == 10
    assert (model.relation.fc2.weight == 1).all()


def test_our_own_names_are_understood():
    model = create_fsc_model('gnn', 'conv4', img_size=32)
    state = randomized(model)
    report = load_reference_state(model, state)
    assert not report.missing and not report.unexpected
    assert_close(model.state_dict(), state)


def test_another_shape_is_named_and_changes_nothing():
    model = feature_model('relation')
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r'relation_module.fc1.weight.*\(8, 99\).*relation.fc1.weight.*\(8, 6\)'):
        load_reference_state(model, {'relation_module.fc2.bias': torch.ones(1), 'relation_module.fc1.weight': torch.ones(8, 99)})
    assert_close(model.state_dict(), before)


def test_a_checkpoint_of_something_else():
    with pytest.raises(ValueError, match='nothing for this RelationNet: it holds bert.weight; wanted relation.layer1'):
        load_reference_state(feature_model('relation'), {'bert.weight': torch.ones(2)})
