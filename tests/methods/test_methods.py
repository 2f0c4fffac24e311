"What every method promises"
import copy
import json
import pickle

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.data.episode import EpisodeLabel
from fsc_fastai.methods import FEAT, FewShotModel, ProtoNet, create_fsc_model, list_methods, register_method, registry
from fsc_fastai.methods.base import one_hot
from fsc_fastai.methods.registry import get_method

from .toys import METHODS, feature_episode, feature_model, processed

methods = pytest.mark.parametrize('method', METHODS)
ANY_WAY = [m for m in METHODS if m != 'gnn']


def scores(model, episode): return model.eval()(*episode[:3])


@pytest.mark.parametrize('method', ANY_WAY)
@pytest.mark.parametrize('n_way, n_shot, n_query', [(3, 1, 1), (8, 4, 2)])
def test_any_way_shot_and_queries(method, n_way, n_shot, n_query):
    assert scores(feature_model(method), feature_episode(n_way, n_shot, n_query)).shape == (n_way * n_query, n_way)


@methods
def test_order_of_the_support_does_not_matter(method):
    model = feature_model(method)
    support_x, support_y, query_x, _ = episode = feature_episode()
    order = torch.randperm(support_x.shape[0])
    assert_close(model(support_x[order], support_y[order], query_x), scores(model, episode), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method', ANY_WAY)
def test_renaming_the_classes_permutes_the_scores(method):
    model = feature_model(method)
    support_x, support_y, query_x, _ = episode = feature_episode()
    new = torch.tensor([3, 1, 4, 0, 2])
    assert_close(model(support_x, new[support_y.long()], query_x)[:, new], scores(model, episode), rtol=1e-4, atol=1e-5)


@methods
def test_unbalanced_support(method):
    support_x, support_y, query_x, _ = feature_episode(n_shot=3)
    keep = torch.tensor([0, 3, 4, 5, 6, 7, 9, 12, 13])  # 1, 3, 2, 1 and 2 images of the classes
    out = feature_model(method)(support_x[keep], support_y[keep], query_x)
    assert out.shape == (15, 5) and out.isfinite().all()


@methods
def test_one_hot_labels_are_labels(method):
    model = feature_model(method)
    support_x, support_y, query_x, _ = episode = feature_episode()
    assert_close(model(support_x, one_hot(support_y), query_x), scores(model, episode))


@methods
def test_weights_of_one_change_nothing_and_others_matter(method):
    model, f_p = processed(method)
    assert_close(model.classify(torch.ones_like(f_p.features) * f_p), model.classify(f_p), rtol=1e-4, atol=1e-5)
    weight = torch.rand(f_p.features.shape) * 2
    assert not torch.allclose(model.classify(weight * f_p), model.classify(f_p), atol=1e-3)


@methods
def test_training_reaches_the_encoder_and_lowers_the_loss(method):
    torch.manual_seed(0)
    model = create_fsc_model(method, 'conv4', img_size=16, n_classes=6, encoder_kwargs={'width': 8})
    support_x, support_y, query_x, query_y = feature_episode(n_query=2, channels=3, size=16, classes=(0, 5, 2, 3, 1))
    loss_func, opt, losses = model.default_loss(), torch.optim.Adam(model.parameters(), 0.01), []
    for _ in range(8):
        loss = loss_func(model(support_x, support_y, query_x), query_y)
        opt.zero_grad(); loss.backward(); opt.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.encoder.parameters())
    assert loss_func(model.eval()(support_x, support_y, query_x), query_y).isfinite()


@methods
def test_bf16_autocast(method):
    model = feature_model(method, n_classes=6)
    support_x, support_y, query_x, query_y = feature_episode()
    exact = model(support_x, support_y, query_x)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        close = model(support_x, support_y, query_x)
        loss = model.default_loss()(model.train()(support_x, support_y, query_x), query_y)
    assert_close(close.float(), exact, rtol=0.05, atol=0.05)
    assert loss.dtype == torch.float32 and loss.isfinite()


@pytest.mark.parametrize('method', ANY_WAY)
def test_half_precision_features_of_large_size(method):
    model = feature_model(method).half()
    support_x, support_y, query_x, _ = feature_episode()
    assert model((200 * support_x).half(), support_y, (200 * query_x).half()).isfinite().all()


@methods
def test_config_builds_the_model_again(method):
    model = create_fsc_model(method, 'conv4', n_way=3, n_classes=4, img_size=24, in_chans=1, encoder_kwargs={'width': 6})
    again = create_fsc_model(**json.loads(json.dumps(model.config)))
    assert type(again) is type(model) and again.config == model.config
    again.load_state_dict(model.state_dict())
    episode = feature_episode(3, channels=1, size=24)
    assert_close(scores(again, episode), scores(model, episode))


@methods
def test_a_model_can_be_copied_and_pickled(method):
    model, episode = feature_model(method), feature_episode()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_close(scores(twin, episode), scores(model, episode))


@methods
def test_compiles_without_a_graph_break(method):
    model = feature_model(method)
    support_x, support_y, query_x, _ = feature_episode()
    member = one_hot(support_y)
    compiled = torch.compile(model, backend='eager', fullgraph=True)
    assert_close(compiled(support_x, member, query_x), model(support_x, member, query_x))


NAMES = {
    'relation': 'relation.layer1.conv.weight relation.layer1.conv.bias relation.layer1.norm.weight relation.layer1.norm.bias '
                'relation.layer2.conv.weight relation.layer2.conv.bias relation.layer2.norm.weight relation.layer2.norm.bias '
                'relation.fc1.weight relation.fc1.bias relation.fc2.weight relation.fc2.bias',
    'can': 'attention.shrink.weight attention.shrink.bias attention.norm.weight attention.norm.bias attention.norm.running_mean '
           'attention.norm.running_var attention.norm.num_batches_tracked attention.expand.weight attention.expand.bias '
           'classifier.weight classifier.bias',
    'proto': '',
    'matching': '',
}


@pytest.mark.parametrize('method', NAMES)
def test_names_of_the_weights_are_stable(method):
    assert list(feature_model(method, n_classes=3).state_dict()) == NAMES[method].split()


def test_names_of_the_graph_layers_are_stable():
    names = list(feature_model('gnn').state_dict())
    assert [n for n in names if not n.startswith('gnn')] == ['fc.0.weight', 'fc.0.bias', 'fc.1.weight', 'fc.1.bias']
    for layer in ('gnn.layers.0', 'gnn.layers.1', 'gnn.last'):
        convs = [f'{layer}.adjacency.{c}.weight' for c in ('hidden.0', 'hidden.3', 'hidden.6', 'hidden.9', 'last')]
        assert {*convs, f'{layer}.fc.weight', f'{layer}.fc.bias'} <= set(names)


def test_methods_by_name():
    assert {*METHODS, 'cross_attention', 'relationnet'} <= set(list_methods())
    ours = {registry.get_method(name) for name in list_methods()}
    listed = {registry.get_method(name) for name in METHODS} | {FEAT}
    assert {cls for cls in ours if cls.__module__.startswith('fsc_fastai.methods.')} == listed, 'METHODS of toys.py has all'
    assert isinstance(create_fsc_model('ProtoNet', nn.Identity(), img_size=4), ProtoNet)
    assert isinstance(create_fsc_model(ProtoNet, nn.Identity(), img_size=4), ProtoNet)


def test_a_method_of_ones_own_registers_itself():
    "Beside its class, so that the registry knows none, and a subclass is another method"
    assert not any(m is not FewShotModel and isinstance(m, type) and issubclass(m, FewShotModel) for m in vars(registry).values())
    class NearestSum(ProtoNet): pass
    assert isinstance(create_fsc_model(NearestSum, nn.Identity(), img_size=4), NearestSum)
    assert register_method('sum')(NearestSum) is NearestSum
    model = create_fsc_model('sum', 'conv4', img_size=16)
    assert type(create_fsc_model(**model.config)) is NearestSum
    @register_method
    class Alone(ProtoNet): pass
    assert get_method('alone') is Alone and get_method('proto') is ProtoNet


def test_bad_arguments_are_named():
    with pytest.raises(TypeError, match='FewShotModel'): create_fsc_model(nn.Linear, 'conv4')
    with pytest.raises(TypeError, match='FewShotModel'): create_fsc_model(None, 'conv4')
    with pytest.raises(TypeError, match='shots'): create_fsc_model('proto', 'conv4', img_size=16, shots=1)
    with pytest.raises(ValueError, match="'max'.*flatten"): create_fsc_model('proto', 'conv4', img_size=16, pool='max')
    with pytest.raises(ValueError, match="'l1'.*cosine"): create_fsc_model('proto', 'conv4', img_size=16, distance='l1')
    with pytest.raises(ValueError, match="'bce'.*mse"): create_fsc_model('relation', 'conv4', img_size=16, loss='bce')
    with pytest.raises(TypeError, match='plain values'): feature_model('proto', scale=object())
    with pytest.raises(ValueError, match='module of your own'): create_fsc_model(**feature_model('proto').config)


def test_names_of_timm_for_the_steps():
    model, (support_x, support_y, query_x, _) = feature_model('proto'), feature_episode()
    f_support, f_query = model.forward_features(support_x), model.forward_features(query_x)
    assert_close(model.forward_head(f_support, support_y, f_query), model(support_x, support_y, query_x))
    assert isinstance(model, FewShotModel) and EpisodeLabel is type(support_y)


class Head(nn.Module):
    "Prototypes and queries to scores: what a deployed classifier runs"
    def __init__(self, model): super().__init__(); self.model = model

    def forward(self, prototypes, queries):
        return self.model.forward_head(prototypes, torch.eye(prototypes.shape[0]), queries)


@pytest.mark.parametrize('method', ['relation', 'proto'])
def test_heads_export_with_any_way_and_queries(method):
    head = Head(feature_model(method)).eval()
    n_way, n_query = torch.export.Dim('n_way', min=2, max=99), torch.export.Dim('n_query', min=2, max=999)
    exported = torch.export.export(head, (torch.randn(5, 6, 5, 5), torch.randn(9, 6, 5, 5)),
                                   dynamic_shapes={'prototypes': {0: n_way}, 'queries': {0: n_query}})
    other = torch.randn(7, 6, 5, 5), torch.randn(13, 6, 5, 5)
    assert_close(exported.module()(*other), head(*other))
