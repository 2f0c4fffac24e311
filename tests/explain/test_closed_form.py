"The passes that are written out equal the engine's on the same classifier, within 1e-5"
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.explain import LRP, Gamma, relevance_start
from fsc_fastai.explain.lrp import scores_and_trace
from fsc_fastai.methods import RelationNet

from ..methods.toys import feature_episode, feature_model

LRP_, ENGINE = LRP(), LRP(engine=True)
TOLERANCE = {'rtol': 1e-5, 'atol': 1e-5}
METHODS = [('relation', {}), ('can', {}), ('gnn', {}), ('proto', {}), ('proto', {'distance': 'cosine'}), ('matching', {}),
           ('matching', {'fce': True})]


def processed(method, signed=False, size=5, n_way=5, **kwargs):
    "A model in double precision and the processed features of an episode"
    model = feature_model(method, size=size, n_way=n_way, **kwargs).double().eval()
    support, y, query, _ = feature_episode(size=size, n_way=n_way)
    sign = torch.randn(support.shape[1:]).sign().double() if signed else 1.
    return model, model.process(support.double() * sign, y, query.double() * sign)


def slow_twin(model, f_p):
    "The engine on the same classifier, where it is not `classify` itself"
    if hasattr(model, 'gnn'): return graph_twin(model, f_p)
    if getattr(model, 'distance', '') == 'euclidean': return distance_twin(f_p)
    return ENGINE(model, f_p)


def graph_twin(model, f_p):
    "Both operators of a graph convolution as products, the identity too"
    def net(features):
        x = torch.cat([features, f_p.labels], 2)
        convolve = lambda layer, x: layer.fc(torch.cat([torch.eye(x.shape[1]).to(x) @ x, layer.adjacency(x) @ x], 2))
        for layer in model.gnn.layers:
            new = convolve(layer, x)
            x = torch.cat([x, nn.functional.leaky_relu(layer.norm(new.flatten(0, 1)).view_as(new))], 2)
        return convolve(model.gnn.last, x)
    run = LRP_.trace(net, f_p.features, model=model)
    return run.relevance(relevance_start(run.out))[0]


def distance_twin(f_p):
    "Kauffmann's contributions, one at a time"
    scores = -(f_p.query[:, None] - f_p.support[None]).square().sum(-1)
    terms = torch.zeros(*scores.shape, f_p.query.shape[1]).double()
    for q, c in torch.cartesian_prod(*(torch.arange(n) for n in scores.shape)):
        others = [k for k in range(scores.shape[1]) if k != c]
        for k, share in zip(others, scores[q, others].softmax(0), strict=True):
            terms[q, c] += share * ((f_p.query[q] - f_p.support[k])**2 - (f_p.query[q] - f_p.support[c])**2)
    R = LRP_.trace(lambda t: t.sum(-1), terms).relevance(relevance_start(scores))[0]
    return torch.cat([R, R], -1) / 2


@pytest.mark.parametrize('method,kwargs', METHODS, ids=str)
@pytest.mark.parametrize('signed', [False, True])
def test_written_out_equals_engine(method, kwargs, signed):
    model, f_p = processed(method, signed, **kwargs)
    found = LRP_(model, f_p)
    assert found.shape == f_p.features.shape and not found.requires_grad
    assert_close(found, slow_twin(model, f_p), **TOLERANCE)


@pytest.mark.parametrize('method,kwargs', METHODS, ids=str)
def test_the_trace_of_the_first_pass_saves_it(method, kwargs):
    model, f_p = processed(method, **kwargs)
    assert_close(LRP_(model, f_p, traced=scores_and_trace(model, f_p)), LRP_(model, f_p))


@pytest.mark.parametrize('trained,size', [*((o, o) for o in (2, 3, 4, 7, 10, 11)), (5, 9)])
def test_relation_module_of_any_size(trained, size):
    "Ceil mode, padding, a map of 1×1, and maps of another size than the module was built for"
    (model, _), (_, f_p) = processed('relation', size=trained), processed('relation', size=size)
    assert_close(LRP_(model, f_p), ENGINE(model, f_p), **TOLERANCE)


@pytest.mark.parametrize('n_way', [2, 3, 7])
@pytest.mark.parametrize('method,kwargs', METHODS[:6], ids=str)
def test_any_way(method, kwargs, n_way):
    model, f_p = processed(method, n_way=n_way, **kwargs)
    assert_close(LRP_(model, f_p), slow_twin(model, f_p), **TOLERANCE)


def test_dense_pairs_run_through_the_engine():
    model, f_p = processed('relation')
    assert_close(LRP_(model, f_p.features), LRP_(model, f_p), **TOLERANCE)


def test_other_rules_are_not_overlooked():
    model, f_p = processed('relation')
    other = LRP(composite={'relation.layer1.*': Gamma(.25)})(model, f_p)
    assert_close(other, LRP(composite={'relation.layer1.*': Gamma(.25)}, engine=True)(model, f_p))
    assert not torch.allclose(other, LRP_(model, f_p))


def test_a_subclass_that_classifies_in_another_way():
    class Doubled(RelationNet):
        def classify(self, f_p): return 2 * super().classify(f_p)
    model, f_p = processed('relation')
    R = LRP_(model, f_p)
    model.__class__ = Doubled
    assert not torch.allclose(LRP_(model, f_p), R)
    assert_close(LRP_(model, f_p), ENGINE(model, f_p))


@pytest.mark.parametrize('method,kwargs', [m for m in METHODS if m[0] != 'gnn'], ids=str)
def test_relevance_of_every_class_is_its_start(method, kwargs):
    "With a small ε all of R_c arrives; a class that is likelier than chance has more for than against it"
    model, f_p = processed(method, **kwargs)
    start = relevance_start(model.classify(f_p), 1e-9)
    R = LRP(1e-9)(model, f_p)
    if method == 'matching': R = f_p.labels.T.double() @ R.flatten(2)
    assert_close(R.flatten(2).sum(2), start, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('method,kwargs', METHODS, ids=str)
def test_features_of_autocast(method, kwargs):
    model = feature_model(method, **kwargs).eval()
    support, y, query, _ = feature_episode()
    with torch.autocast('cpu', torch.bfloat16):
        f_p = model.process(support, y, query)
        found = LRP_(model, f_p)
    assert found.dtype == torch.float32 and found.isfinite().all()


@pytest.mark.parametrize('method,kwargs', METHODS, ids=str)
def test_a_pass_on_a_trace_changes_no_buffer(method, kwargs):
    "In training mode, where running a norm would; so that a step need not keep the buffers of the encoder"
    model, f_p = processed(method, **kwargs)
    model.train().register_buffer('own', torch.zeros(()))
    traced = scores_and_trace(model, f_p)
    before = {name: (b, b._version) for name, b in model.named_buffers()}
    LRP_(model, f_p, traced=traced)
    for name, b in model.named_buffers(): assert b is before[name][0] and b._version == before[name][1], name
