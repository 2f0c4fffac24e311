"Relevances and second passes of the published implementations, reproduced from their weights"

import pytest
import torch
from torch.testing import assert_close

from fsc_fastai.explain import LRP, relevance_start, relevance_weights
from fsc_fastai.methods.graph import GraphNodes
from fsc_fastai.methods.pairs import Pairs
from fsc_fastai.tensors import unit

from ..golden_files import golden, load, recorded
from ..methods.test_golden import cross_attention_net, gnn, published_order, recorded_encoder, relation_net

TOLERANCE = {'rtol': 1e-3, 'atol': 1e-4}
ENGINE = pytest.mark.parametrize('engine', [False, True], ids=['written out', 'engine'])


@ENGINE
@recorded('relation_net_*way*.npz')
def test_relation_net(path, device, engine):
    arrays, weights = load(path, device)
    model = relation_net(arrays, weights)
    pairs = Pairs(arrays['support'].mean(1), arrays['query'].flatten(0, 1))
    w = relevance_weights(LRP(float(arrays['eps']), engine=engine)(model, pairs))
    assert_close(w.flatten(0, 1), arrays['lrp_weight'], **TOLERANCE)
    assert_close(model.classify(w * pairs), arrays['logits_lrp'].float(), **TOLERANCE)


@recorded('gnn_*.npz')
def test_gnn(path, device):
    """On the recorded nodes, in double precision.

    Denominators come near ε, where relevances of both signs cancel: one rounding of the nodes changes the relevance of a node by
    more than the tolerance of its small values. So relevances are compared on the scale of the largest, and weights on theirs, 1.
    """
    arrays, weights = load(path, device)
    model, lrp = gnn(arrays, weights).double(), LRP(float(arrays['eps']))
    nodes = arrays['nodes'].double().unflatten(1, (model.n_way, -1))
    nodes = torch.cat([nodes[:, :, :-1].flatten(1, 2), nodes[:, :, -1]], 1)
    width = nodes.shape[2] - model.n_way
    f_p = GraphNodes(nodes[..., :width], nodes[..., width:], arrays['logits'].shape[0])
    trace = model.classify_with_trace(f_p)[1]
    start = relevance_start(model.gnn.last.fc(trace[-1].gathered), lrp.eps)
    assert_close(published_order(start, model.n_way).float(), arrays['relevance_init'], **TOLERANCE)
    R, expected = lrp(model, f_p), arrays['relevance_nodes'][..., :width]
    scale = expected.abs().max()
    assert_close(published_order(R, model.n_way).float() / scale, expected / scale, **TOLERANCE)
    w = relevance_weights(R)
    assert_close(published_order(w, model.n_way).float(), arrays['lrp_weight'], rtol=1e-3, atol=1e-3)
    assert_close(model.classify(w * f_p).float(), arrays['logits_lrp'], **TOLERANCE)


@ENGINE
@recorded('can_*.npz')
def test_cross_attention_net(path, device, engine):
    arrays, weights = load(path, device)
    model, lrp = cross_attention_net(arrays, weights), LRP(float(arrays['eps']), engine=engine)
    f_p = model.process(arrays['support'], arrays['support_y'], arrays['query'])
    scores = model.classify(f_p)
    assert_close(relevance_start(scores, lrp.eps), arrays['relevance_init'], **TOLERANCE)
    assert_close(lrp(model, f_p), arrays['relevance_attended_query'], **TOLERANCE)
    # each term of the cosine on its own
    terms = unit(f_p.query.mean((-2, -1))) * unit(f_p.support.mean((-2, -1)))
    found = lrp.trace(lambda t: t.sum(-1), terms).relevance(lrp.start_of(scores))[0]
    assert_close(found, arrays['relevance_channel'], **TOLERANCE)


@pytest.mark.parametrize('path', [p for p in golden('encoder_*.npz') if 'relevance_features' in load(p)[0]], ids=lambda p: p.stem)
def test_encoder_to_the_pixels(path, device):
    arrays, encoder, images = recorded_encoder(path, device)
    R = LRP(form='R', norm='identity').relevance(encoder, images, arrays['relevance_features'])
    assert_close(R, arrays['relevance_input_bn_identity'], **TOLERANCE)
