"MatchingNet"
import pytest
import torch
from torch.testing import assert_close

from fsc_fastai.methods.matching import FullContext

from .toys import feature_episode, feature_model, processed


@pytest.mark.parametrize('fce', [False, True])
def test_scores_are_log_probabilities(fce):
    model, (support_x, support_y, query_x, _) = feature_model('matching', fce=fce), feature_episode()
    scores = model(support_x, support_y, query_x)
    assert_close(scores.exp().sum(1), torch.ones(15))
    assert_close(scores.log_softmax(1), scores, rtol=1e-4, atol=1e-5)  # so that cross entropy is right


def test_attention_over_the_samples_is_summed_over_each_class():
    model, (support_x, support_y, query_x, _) = feature_model('matching', scale=3.), feature_episode(n_shot=3)
    cos = torch.cosine_similarity(query_x.mean((2, 3))[:, None], support_x.mean((2, 3))[None], dim=2)
    expected = (3 * cos).softmax(1).view(15, 5, 3).sum(2).log()
    assert_close(model(support_x, support_y, query_x), expected, rtol=1e-4, atol=1e-5)


def test_context_changes_the_embeddings_and_learns():
    model, (support_x, support_y, query_x, _) = feature_model('matching', fce=True), feature_episode()
    model(support_x, support_y, query_x)[0, 0].backward()
    assert all(p.grad is not None for p in model.context.parameters())
    plain = feature_model('matching')
    assert not torch.allclose(model(support_x, support_y, query_x), plain(support_x, support_y, query_x))


def test_context_by_hand():
    "Vinyals et al. 2016, appendix A: both LSTM directions add to a sample, a query reads the support at each of K steps"
    torch.manual_seed(0)
    context, support, query = FullContext(4, n_steps=3), torch.randn(5, 4), torch.randn(2, 4)
    forward, backward = context.support(support)[0].chunk(2, 1)
    samples = support + forward + backward
    h, cell = query, torch.zeros(2, 4)
    for _ in range(3):
        read = torch.stack([((q @ samples.T).softmax(0)[:, None] * samples).sum(0) for q in h])
        h, cell = context.query(torch.cat([query, read], 1), (h, cell))
        h = h + query
    for ours, expected in zip(context(support, query), (samples, h), strict=True): assert_close(ours, expected)


def test_features_pair_every_query_with_every_sample():
    _, f_p = processed('matching')
    support_x, _, query_x, _ = feature_episode()
    assert f_p.features.shape == (15, 10, 12)
    assert_close(f_p.features[4, 3], torch.cat([support_x[3], query_x[4]]).mean((1, 2)))
