"Forward passes of the published implementations, reproduced from their weights: the files and their shapes tell all sizes"
import json

import numpy as np
import torch
from torch.testing import assert_close

from fsc_fastai.encode import create_encoder, load_reference_state
from fsc_fastai.methods import CrossAttentionNet, GNNNet, RelationNet
from fsc_fastai.methods.base import class_means
from fsc_fastai.methods.pairs import Pairs

from ..golden_files import fill_module, load, recorded
from .toys import feature_encoder

TOLERANCE = {'rtol': 1e-4, 'atol': 1e-5}


def loaded(model, weights):
    "`model` with all the weights of the file, which must fill its head completely"
    report = load_reference_state(model, weights)
    assert not report.missing and not report.unexpected
    return model.to(next(iter(weights.values())).device).eval()


def class_major(maps):
    "Maps `(n_way, n, ...)` as one batch and its labels"
    return maps.flatten(0, 1), torch.arange(maps.shape[0], device=maps.device).repeat_interleave(maps.shape[1])


def recorded_encoder(path, device):
    "The arrays of a file, the encoder that they are of, and its images"
    arrays, _ = load(path, device)
    fill = fill_module()
    with np.load(path) as z: keys = json.loads(str(z['keys']))
    size = int(arrays['input_size'])
    encoder = create_encoder(path.stem.removeprefix('encoder_'), img_size=size)
    loaded(encoder, {name: torch.from_numpy(fill.fill(name, tuple(shape))).to(device) for name, shape in keys})
    return arrays, encoder, torch.from_numpy(np.stack([fill.image(i, size) for i in range(int(arrays['n']))])).to(device)


@recorded('encoder_*.npz')
def test_encoder(path, device):
    arrays, encoder, images = recorded_encoder(path, device)
    assert_close(encoder(images), arrays['features'], **TOLERANCE)
    assert encoder.out_shape == tuple(arrays['features'].shape[1:])


def relation_net(arrays, weights):
    channels, size = arrays['support'].shape[2:4]
    return loaded(RelationNet(feature_encoder(channels, size), hidden=weights['relation_module.fc1.bias'].shape[0]), weights)


@recorded('relation_net_*way*.npz')
def test_relation_net(path, device):
    arrays, weights = load(path, device)
    model = relation_net(arrays, weights)
    (support, support_y), (query, _) = class_major(arrays['support']), class_major(arrays['query'])
    assert_close(model(support, support_y, query), arrays['logits'], **TOLERANCE)
    pairs = Pairs(arrays['support'].mean(1), arrays['query'].flatten(0, 1))
    weighted = arrays['lrp_weight'].view_as(pairs.features) * pairs
    assert_close(model.classify(weighted), arrays['logits_lrp'].float(), **TOLERANCE)


def gnn(arrays, weights):
    n_way, channels = arrays['support'].shape[0], arrays['support'].shape[-1]
    width = 2 * weights['gnn.layer_l0.fc.bias'].shape[0]
    return loaded(GNNNet(feature_encoder(channels, 1), n_way, n_features=weights['fc.0.bias'].shape[0], width=width), weights)


def published_order(nodes, n_way):
    "Our nodes, the support and then the queries, in the published order: class by class, the query after its support"
    n_support = nodes.shape[1] - n_way
    support = nodes[:, :n_support].unflatten(1, (n_way, -1))
    return torch.cat([support, nodes[:, n_support:, None]], 2).flatten(1, 2)


@recorded('gnn_*.npz')
def test_gnn(path, device):
    arrays, weights = load(path, device)
    model = gnn(arrays, weights)
    (support, support_y), (query, _) = class_major(arrays['support']), class_major(arrays['query'])
    nodes = model.process(support, support_y, query)
    assert_close(published_order(torch.cat([nodes.features, nodes.labels], 2), model.n_way), arrays['nodes'], **TOLERANCE)
    assert_close(model.classify(nodes), arrays['logits'], **TOLERANCE)
    per_class = arrays['lrp_weight'].unflatten(1, (model.n_way, -1))
    weight = torch.cat([per_class[:, :, :-1].flatten(1, 2), per_class[:, :, -1]], 1)
    assert_close(model.classify(weight * nodes), arrays['logits_lrp'], **TOLERANCE)


def cross_attention_net(arrays, weights):
    channels, size = arrays['support'].shape[1:3]
    n_classes = weights['clasifier.bias'].shape[0]
    return loaded(CrossAttentionNet(feature_encoder(channels, size), n_classes=n_classes), weights)


@recorded('can_*.npz')
def test_cross_attention_net_in_evaluation(path, device):
    arrays, weights = load(path, device)
    model = cross_attention_net(arrays, weights)
    f_p = model.process(arrays['support'], arrays['support_y'], arrays['query'])
    a_support, a_query = model.attention(class_means(arrays['support'], arrays['support_y']), arrays['query'])
    assert_close(a_support.flatten(2), arrays['attention_support'], **TOLERANCE)
    assert_close(a_query.flatten(2).transpose(0, 1), arrays['attention_query'], **TOLERANCE)
    assert_close(f_p.support, arrays['attended_support'], **TOLERANCE)
    assert_close(f_p.query, arrays['attended_query'], **TOLERANCE)
    assert_close(model.classify(f_p), arrays['logits'], **TOLERANCE)


@recorded('can_*.npz')
def test_cross_attention_net_in_training(path, device):
    arrays, weights = load(path, device)
    model = cross_attention_net(arrays, weights).train()
    scores, global_scores = model(arrays['support'], arrays['support_y'], arrays['query'])
    true_way = global_scores[torch.arange(scores.shape[0], device=device), arrays['query_y']]
    assert_close(scores, arrays['train_local_logits'], **TOLERANCE)
    assert_close(true_way, arrays['train_global_logits'], **TOLERANCE)
