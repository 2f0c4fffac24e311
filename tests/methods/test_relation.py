"RelationNet and its module"
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fsc_fastai.methods import create_fsc_model
from fsc_fastai.methods.pairs import Pairs
from fsc_fastai.methods.relation import RelationModule

from .toys import feature_episode, feature_model


def pairs(channels=6, size=5, n_way=5, n_query=7):
    return Pairs(torch.randn(n_way, channels, size, size), torch.randn(n_query, channels, size, size))


@pytest.mark.parametrize('size', [1, 2, 3, 5, 7, 10, 19])
def test_separable_equals_dense(size):
    module, f_p = RelationModule((6, size, size)), pairs(size=size)
    separable, dense = module(f_p)[0], module(f_p.features)[0]
    assert separable.shape == (7, 5)
    assert_close(separable, dense, rtol=1e-5, atol=1e-5)


def test_gradients_of_separable_equal_dense():
    module, f_p = RelationModule((4, 6, 6)).double(), pairs(4, 6)
    support, query = f_p.support.double().requires_grad_(), f_p.query.double().requires_grad_()
    f_p, inputs = Pairs(support, query), [support, query, *module.parameters()]
    separable, dense = (torch.autograd.grad(module(p)[0].square().sum(), inputs) for p in (f_p, f_p.features))
    assert_close(separable, dense)


def test_pairs_put_the_prototype_first():
    f_p = pairs(n_way=2, n_query=3)
    assert f_p.features.shape == (3, 2, 12, 5, 5)
    assert_close(f_p.features[2, 1], torch.cat([f_p.support[1], f_p.query[2]]))


@pytest.mark.parametrize('trained, other', [(7, 3), (3, 7), (5, 1), (12, 8), (10, 19)])
def test_maps_of_another_size_than_in_training(trained, other):
    scores, trace = RelationModule((6, trained, trained))(pairs(size=other))
    assert scores.shape == (7, 5) and scores.isfinite().all()
    assert trace.flat.shape[1] == RelationModule((6, trained, trained)).fc1.in_features


def test_maps_too_small_for_an_unpadded_module():
    with pytest.raises(ValueError, match='8×8 at least, found 5×5'): RelationModule((6, 10, 10))(pairs(size=5))


def test_maps_that_are_not_square():
    module = RelationModule((6, 4, 11))
    assert module(Pairs(torch.randn(5, 6, 4, 11), torch.randn(7, 6, 4, 11)))[0].shape == (7, 5)


def test_trace_holds_what_each_layer_saw():
    model = feature_model('relation', size=7)
    support_x, support_y, query_x, _ = feature_episode(size=7)
    f_p = model.process(support_x, support_y, query_x)
    scores, trace = model.classify_with_trace(f_p)
    assert_close(scores, model.classify(f_p))
    module, (layer1, layer2, flat, hidden) = model.relation, trace
    assert layer1.x is f_p and layer2.x is layer1.pooled
    assert_close(layer1.active, module.layer1.norm(module.layer1.conv(f_p.features.flatten(0, 1))).relu(), rtol=1e-4, atol=1e-5)
    assert_close(F.max_unpool2d(layer1.pooled, layer1.where, 2, output_size=layer1.active.shape).sum(), layer1.pooled.sum())
    assert_close(flat, layer2.pooled.flatten(1))
    assert_close(module.fc2(hidden).view_as(scores), scores)


def test_resnet10_at_84_px_keeps_a_position():
    model = create_fsc_model('relation', 'resnet10')
    assert model.encoder.out_shape == (512, 3, 3) and model.relation.fc1.in_features == 512


def test_loss_by_name():
    scores, y = torch.randn(4, 3), torch.tensor([0, 2, 1, 1])
    assert_close(feature_model('relation').default_loss()(scores, y), F.cross_entropy(scores, y))
    mse = feature_model('relation', loss='mse').default_loss()(scores, y)
    assert_close(mse, ((scores.sigmoid() - torch.eye(3)[y])**2).mean())
