"Fast paths ask whether every part is what they stand for: with another part they give what the parts themselves give"
import copy
import pickle
from types import MethodType

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.adapt.graph_head import GraphHead
from fsc_fastai.adapt.head import PrototypeHead, VectorHead
from fsc_fastai.as_built import as_built, blueprint
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.encode import create_encoder
from fsc_fastai.explain import LRP
from fsc_fastai.explain.closed_form import head_of
from fsc_fastai.kernels.batch_norm import quick_second_derivative
from fsc_fastai.kernels.small_conv import SmallConv2d
from fsc_fastai.methods import RelationNet
from fsc_fastai.methods.base import FewShotModel, one_hot
from fsc_fastai.methods.head import Head
from fsc_fastai.methods.pairs import Pairs
from fsc_fastai.methods.relation import RelationModule

from .callback.episodes import build_model, learner
from .methods.toys import METHODS, feature_episode, feature_model

SIZE = 3


def hook(module): module.register_forward_hook(lambda m, args, y: y + y.sin())


def replace(path, part):
    def change(model):
        owner, name = path.rsplit('.', 1)
        setattr(model.get_submodule(owner), name, part())
    return change


def set_attribute(path, name, value):
    def change(model): setattr(model.get_submodule(path), name, value)
    return change


def scaled_conv(n_in=6, n_out=6):
    "A convolution of another class, with weights of its own"
    class Doubled(nn.Conv2d):
        def forward(self, x): return 2 * super().forward(x)
    return lambda: Doubled(n_in, n_out, 3, padding=1).double()


RELATION = {
    'activation': replace('relation.layer1.relu', lambda: nn.LeakyReLU(.3)),
    'activation 2': replace('relation.layer2.relu', nn.Softplus),
    'no activation': replace('relation.layer1.relu', nn.Identity),
    'norm': replace('relation.layer1.norm', lambda: nn.GroupNorm(2, 6).double()),
    'no norm': replace('relation.layer2.norm', nn.Identity),
    'pool': set_attribute('relation.layer1.pool', 'ceil_mode', False),
    'convolution': replace('relation.layer1.conv', scaled_conv(12)),
    'convolution 2': replace('relation.layer2.conv', scaled_conv()),
    'padding mode': set_attribute('relation.layer1.conv', 'padding_mode', 'circular'),
    'linear layer': replace('relation.fc1', lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh()).double()),
    'hook': lambda model: hook(model.relation.layer1.conv), 'hook 2': lambda model: hook(model.relation.layer2.norm),
    'hook on a pool': lambda model: model.relation.layer2.relu.register_forward_pre_hook(lambda m, args: (args[0] + .5,)),
    'weight norm': lambda model: nn.utils.parametrizations.weight_norm(model.relation.layer1.conv),
    'method': lambda model: setattr(model.relation.fc2, 'forward', lambda x: x.sum(1, keepdim=True)),
    'classify': lambda model: setattr(model, 'classify', MethodType(lambda self, f_p: 3 * self.relation(f_p)[0], model)),
}
GRAPH = {
    'slope': set_attribute('gnn.layers.0.adjacency.hidden.2', 'negative_slope', .5),
    'activation': replace('gnn.layers.0.adjacency.hidden.2', nn.Identity),
    'norm': replace('gnn.layers.1.norm', nn.Identity),
    'convolution': lambda model: hook(model.gnn.layers[0].adjacency.hidden[0]),
    'last convolution': lambda model: hook(model.gnn.last.adjacency.last),
    'linear layer': replace('gnn.last.fc', lambda: nn.Sequential(nn.Linear(2 * 229, 5), nn.Tanh()).double()),
    'hook': lambda model: hook(model.gnn.layers[0].fc),
}
CHANGES = [(method, name) for method, changes in (('relation', RELATION), ('gnn', GRAPH)) for name in changes]


def episode():
    support, y, query, _ = feature_episode(size=SIZE, n_query=4)
    return support.double(), y, query.double()


@pytest.mark.parametrize('method,name', CHANGES)
def test_every_fast_path_gives_what_the_parts_give(method, name):
    torch.manual_seed(3)
    plain, model = (feature_model(method, size=SIZE).double() for _ in range(2))
    (RELATION if method == 'relation' else GRAPH)[name](model)
    support, y, query = episode()
    f_p = model.process(support, y, query)
    with torch.no_grad():
        scores = model.forward_head(support, y, query)
        if name != 'weight norm':  # another form of the same weights
            assert (plain.forward_head(support, y, query) - scores).abs().max() > 1e-5
        # evaluation
        head = model.head()
        assert_close(head.fit(head.compact(support), y)(head.compact(query)), scores)
        assert_close(scores, model.classify(f_p.features if method == 'relation' else f_p))  # of dense pairs
        # deployment
        head = model.head(statistics='support').fit(support, one_hot(y, torch.double))
        assert_close(head(query), torch.cat([Head.forward(head, q) for q in query.split(1)]))
        if method == 'relation':
            assert_close(head(query), head.model.classify(Pairs(head.support, query).features))
    # explanation
    assert head_of(plain) is not None and head_of(model) is None
    if name != 'classify' and 'Tanh' not in repr(model): assert_close(LRP()(model, f_p), LRP(engine=True)(model, f_p))


def test_a_hook_on_a_head_that_is_deployed_already():
    support, y, query = episode()
    for method, path in (('relation', 'relation.layer1.conv'), ('gnn', 'gnn.layers.0.fc')):
        head = feature_model(method, size=SIZE).double().head(statistics='support').fit(support, one_hot(y, torch.double))
        before = head(query)
        hook(head.model.get_submodule(path))
        assert not torch.allclose(head(query), before)
        assert_close(head(query), Head.forward(head, query))


@pytest.mark.parametrize('method', METHODS)
def test_a_classifier_set_on_the_object_is_explained(method):
    model = feature_model(method, size=SIZE).double()
    f_p, own = model.process(*episode()), model.classify
    model.classify = lambda f_p: -own(f_p)
    assert head_of(model) is None
    if method != 'proto':  # its distances have no gradient × input
        assert_close(LRP()(model, f_p), LRP(engine=True)(model, f_p))


def test_guided_training_with_another_part_explains_what_it_trains():
    def weights_of(engine):
        model = build_model(arch='conv4np')
        model.relation.layer1.relu = nn.LeakyReLU(.3)
        learn = learner([LRPGuidedCallback(explainer=LRP(engine=engine))], model=model)
        learn.fit(1)
        return learn.model.state_dict()
    assert_close(weights_of(False), weights_of(True))


@pytest.mark.parametrize('method,head', [('proto', PrototypeHead), ('can', PrototypeHead), ('relation', PrototypeHead),
                                         ('matching', VectorHead), ('gnn', GraphHead)])
def test_a_subclass_that_processes_in_another_way_is_deployed_with_all_its_samples(method, head):
    model = feature_model(method, size=SIZE)
    assert isinstance(model.head(statistics='support'), head)
    class Sharpened(type(model)):
        def process(self, f_support, support_y, f_query): return super().process(f_support**2, support_y, f_query)
    model.__class__ = Sharpened
    support, y, query, _ = feature_episode(size=SIZE)
    deployed = model.head(statistics='support')
    assert not isinstance(deployed, head)
    if method in ('proto', 'can', 'matching'):  # without statistics of the batch
        assert_close(deployed.fit(support, one_hot(y))(query), model.forward_head(support, y, query))


# The helper

def test_as_built():
    model = feature_model('relation', size=SIZE)
    def quick(): return as_built(model, RelationNet, 'classify', relation=RelationModule)
    for like in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), model.train(), model.eval().double()):
        assert as_built(like, RelationNet, 'process', 'classify', relation=RelationModule)
    handle = model.relation.fc1.register_forward_hook(lambda *args: None)
    assert not quick()
    handle.remove()
    assert quick()
    with quick_second_derivative(model): assert quick()  # the same values
    model.relation.fc1.bias = None
    assert not quick()
    del model.relation.blueprint  # as in a model that was saved before there were any
    assert not quick() and not as_built(model, FewShotModel, 'classify')
    class Other(RelationModule):
        def forward(self, pairs): return super().forward(pairs)
    model.relation = Other((6, 3, 3))
    assert model.relation.blueprint == blueprint(model.relation) and not quick()


@pytest.mark.parametrize('name,value', [('stride', (2, 2)), ('dilation', (2, 2)), ('padding_mode', 'reflect')])
def test_a_small_convolution_with_another_setting_is_torch_s(name, value):
    torch.manual_seed(0)
    conv, plain, x = SmallConv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1, **{name: value}), torch.randn(20, 3, 4, 4)
    plain.load_state_dict(conv.state_dict())
    setattr(conv, name, value)
    assert_close(conv(x), plain(x))


# Signs of features

NEVER_NEGATIVE = {'conv4': True, 'conv4np': True, 'resnet10': True, 'resnet12': True, 'resnet18': True, 'densenet121': True,
                  'mobilenetv3_small_050': False, 'convnext_atto': False, 'regnetx_002': True}


@pytest.mark.parametrize('arch', NEVER_NEGATIVE)
def test_an_encoder_knows_whether_its_maps_are_never_negative(arch):
    encoder = create_encoder(arch, img_size=32).eval()
    assert encoder.nonnegative == NEVER_NEGATIVE[arch]
    with torch.no_grad(): assert (encoder(torch.randn(2, 3, 32, 32)) >= 0).all() or not encoder.nonnegative


def test_of_modules_of_the_user_s():
    def encoder(*layers): return create_encoder(nn.Sequential(nn.Conv2d(3, 4, 3), *layers), img_size=8)
    pooled = nn.Sequential(nn.ReLU(), nn.AvgPool2d(2))
    for layer in (nn.ReLU(), nn.ReLU6(), nn.Sigmoid(), nn.Softplus(), nn.Hardtanh(0, 1), pooled):
        assert encoder(layer).nonnegative, layer
    for layer in (nn.Identity(), nn.GELU(), nn.LeakyReLU(), nn.Hardtanh(), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))):
        assert not encoder(layer).nonnegative, layer


def test_a_changed_encoder_knows_no_more():
    for change in (lambda e: setattr(e.body.stages[3], 'act', nn.LeakyReLU()), hook, lambda e: hook(e.body.stages[3].act)):
        encoder = create_encoder('conv4', img_size=16)
        change(encoder)
        assert not encoder.nonnegative


def test_relevance_of_signed_features_whatever_the_encoder():
    "A user's own pairs, those behind a ReLU, and an encoder whose activation was replaced"
    torch.manual_seed(0)
    model = feature_model('relation', size=SIZE).double()
    model.encoder = create_encoder(nn.ReLU(), img_size=SIZE, in_chans=6)
    pairs = Pairs(torch.randn(5, 6, SIZE, SIZE).double(), torch.randn(10, 6, SIZE, SIZE).double())
    assert model.encoder.nonnegative
    assert_close(LRP()(model, pairs), LRP(engine=True)(model, pairs))
    known = model.process(*episode())
    assert_close(LRP()(model, known), LRP()(model, Pairs(known.support, known.query)))
    model.encoder.body = nn.LeakyReLU()
    support, y, query, _ = feature_episode(size=SIZE)
    f_p = model.process(model.encode(support.double() - .5), y, model.encode(query.double() - .5))
    assert (f_p.query < 0).any()
    assert_close(LRP()(model, f_p), LRP(engine=True)(model, f_p))
