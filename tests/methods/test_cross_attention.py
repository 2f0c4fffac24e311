"CrossAttentionNet and its attention"
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from .toys import feature_episode, feature_model, processed


def published_attention(module, a, b):
    "The attention of `a`, with the correlation of all position pairs spelt out: `(n_a, n_b, H, W)`"
    size = a.shape[-2:]
    a, b = F.normalize(a.flatten(2), dim=1), F.normalize(b.flatten(2), dim=1)
    correlation = torch.einsum('aci,bcj->abij', a, b)
    mean = correlation.mean(2).flatten(0, 1)[..., None, None]
    kernel = module.expand(F.relu(module.norm(module.shrink(mean)))).view(a.shape[0], b.shape[0], 1, -1)
    fused = (correlation * kernel).mean(-1)
    return 1 + (fused / module.temperature).softmax(-1).unflatten(2, size)


def test_equals_the_materialised_correlation():
    module = feature_model('can', size=6).attention
    support, query = torch.randn(5, 6, 6, 6), torch.randn(7, 6, 6, 6)
    a_support, a_query = module(support, query)
    assert_close(a_support, published_attention(module, support, query), rtol=1e-4, atol=1e-5)
    assert_close(a_query, published_attention(module, query, support), rtol=1e-4, atol=1e-5)


def test_attention_adds_one_in_all():
    a_support, a_query = feature_model('can').attention(torch.randn(3, 6, 5, 5), torch.randn(4, 6, 5, 5))
    assert a_support.shape == (3, 4, 5, 5) and a_query.shape == (4, 3, 5, 5)
    assert_close(a_query.sum((-2, -1)), torch.full((4, 3), 26.))


def test_meta_learner_follows_the_map():
    for size in (1, 3, 6, 10):
        module = feature_model('can', size=size).attention
        assert (module.shrink.in_channels, module.shrink.out_channels) == (size**2, max(size**2 // 6, 1))


def test_maps_of_another_size_are_pooled_to_the_trained_size():
    model = feature_model('can', size=5)
    support_x, support_y, query_x, _ = feature_episode(size=10)
    pooled = (F.avg_pool2d(x, 2) for x in (support_x, query_x))
    assert_close(model(support_x, support_y, query_x), model(next(pooled), support_y, next(pooled)), rtol=1e-4, atol=1e-5)


def test_features_are_the_attended_queries():
    _, f_p = processed('can')
    weighted = 2 * f_p
    assert f_p.features is f_p.query and weighted.support is f_p.support
    assert_close(weighted.query, 2 * f_p.query)


def test_training_output_scores_positions_and_training_classes():
    support_x, support_y, query_x, _ = feature_episode()
    scores, global_scores = feature_model('can', n_classes=9).train()(support_x, support_y, query_x)
    assert scores.shape == (15, 5, 5, 5) and global_scores.shape == (15, 5, 9, 5, 5)
    assert feature_model('can').train()(support_x, support_y, query_x).shape == (15, 5, 5, 5)
