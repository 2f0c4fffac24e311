"ProtoNet"
import torch
from torch.testing import assert_close

from fsc_fastai.methods.pairs import Pairs

from .toys import feature_episode, feature_model


def test_scores_are_negative_squared_distances_to_the_means():
    support_x, support_y, query_x, _ = feature_episode()
    means = support_x.view(5, 2, 6, 5, 5).mean((1, 3, 4))
    expected = -torch.cdist(query_x.mean((2, 3)), means)**2
    assert_close(feature_model('proto')(support_x, support_y, query_x), expected, rtol=1e-4, atol=1e-5)


def test_cosine():
    support, query = torch.randn(3, 8), torch.randn(4, 8)
    scores = feature_model('proto', distance='cosine', scale=4.).classify(Pairs(support, query))
    assert_close(scores, 4 * torch.cosine_similarity(query[:, None], support[None], dim=2))


def test_flatten_tells_positions_apart():
    x = torch.zeros(2, 6, 5, 5)
    x[0, :, 0, 0] = x[1, :, 4, 4] = 1
    y = torch.arange(2)
    assert feature_model('proto', pool='flatten')(x, y, x).argmax(1).tolist() == [0, 1]
    assert_close(feature_model('proto')(x, y, x), torch.zeros(2, 2))


def test_maps_of_another_size_than_in_training():
    assert feature_model('proto', size=5)(*feature_episode(size=8)[:3]).shape == (15, 5)
