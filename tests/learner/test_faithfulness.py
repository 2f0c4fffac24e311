"`learn.faithfulness`: explainers compared on the same episodes"
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from fsc_fastai.explain import LRP, GradientXInput
from fsc_fastai.explain.explainer import Explainer
from fsc_fastai.learner.faithfulness import plot_removal
from tests.learners import hue_learner

QUICK = dict(n_episodes=2, patches=(5,), replace=('mean',), steps=4, period=4)


class Fixed(Explainer):
    "The same map for every image, or its opposite"
    def __init__(self, sign): self.sign = sign
    def __call__(self, model, f_p): raise NotImplementedError
    def trace(self, *args, **kwargs): raise NotImplementedError
    def start_of(self, scores): return scores

    def of_images(self, encode, score, support_x, query_x, support):
        n_query, n_way = len(query_x), len(score(encode(support_x), encode(query_x))[0])
        heat = self.sign * torch.arange(400.).view(20, 20).expand(3, 20, 20)
        return heat.expand(n_query, n_way, 3, 20, 20), (heat.expand(n_query, n_way, len(support_x), 3, 20, 20)
                                                        if support else None)


@pytest.fixture
def learn(tmp_path): return hue_learner(tmp_path/'hues', 'proto')


def rows(table, **wanted):
    for k, v in wanted.items(): table = table[table[k] == v]
    return table


def test_a_map_and_its_opposite(learn):
    "What one removes first the other removes last, on queries and on the support; the random order is the same for both"
    table = learn.faithfulness({'up': Fixed(1), 'down': Fixed(-1)}, support=True, **QUICK)
    assert set(table.domain) == {'validation'} and set(table.side) == {'query', 'support'}
    for side in ('query', 'support'):
        up, down = (rows(table, side=side, explainer=name, replaced_by='mean').set_index('measure') for name in ('up', 'down'))
        assert up.value.deletion == pytest.approx(down.value.insertion) and up.value.gap == pytest.approx(-down.value.gap)
        assert up.value.random == down.value.random and down.difference.random == 0
        assert (up.difference == 0).all() and (up.difference_ci95 == 0).all()
        assert down.difference.gap == pytest.approx(down.value.gap - up.value.gap)
        found = [[o[side, 'gap', 5, 'mean'] for o in table.attrs['episodes']['validation'][name]] for name in ('up', 'down')]
        d = np.subtract(found[1], found[0])
        assert down.difference_ci95.gap == pytest.approx(1.96 * d.std(ddof=1) / 2**.5)
    fig = plot_removal(table, side='support')
    assert len(fig.axes[0].lines) == 5
    forward, reverse, random = table.attrs['curves']['validation', 'up', 'query', 5, 'mean']
    assert forward[0] == reverse[0] == random[0] and np.allclose(forward[-1], reverse[-1]) and len(forward) == 5
    plt.close('all')


@pytest.mark.parametrize('method', ['relation', 'can', 'gnn', 'matching'])
def test_every_method_on_every_side(tmp_path, method):
    learn = hue_learner(tmp_path/'hues', method)
    before = {k: v.clone() for k, v in learn.model.state_dict().items()}
    learn.model.train()
    table = learn.faithfulness({'LRP': LRP(), 'gradient': GradientXInput()}, support=True, **(QUICK | dict(n_episodes=1)))
    assert learn.model.training and all(torch.equal(before[k], v) for k, v in learn.model.state_dict().items())
    assert table.value.notna().all() and table.ci95.isna().all()  # of one episode
    assert set(table.measure) == {'deletion', 'insertion', 'random', 'gap', 'grid', 'mass', 'pointing', 'passes', 'randomised',
                                  'ssim'}
    assert ((table.value >= 0) | ~table.measure.isin(['deletion', 'insertion', 'random', 'mass', 'pointing', 'passes'])).all()
    layers = table.attrs['randomisation']['validation', 'LRP']
    assert layers.layer.iloc[0] == '' and layers.rank_correlation.iloc[0] == pytest.approx(1)


def test_the_score_of_a_query_is_its_own(tmp_path):
    "Statistics are fixed by the support: removing pixels of one query leaves the others' scores as they were"
    from fsc_fastai.learner.adapted import episode_images
    from fsc_fastai.learner.faithfulness import _Explained
    from fsc_fastai.learner.tested import tested_domains
    learn = hue_learner(tmp_path/'hues', 'relation')
    learn.model.eval()
    (_, dl, sampler), = tested_domains(learn, {'v': learn.dls.valid}, 1, 3, 2, 2, 0)
    episode = _Explained(learn.model, *episode_images(dl, sampler, 0))
    with torch.no_grad():
        x = episode.query_x.clone()
        before = episode.of_queries(x)
        x[0] = 0
        after = episode.of_queries(x)
        assert after[0] != before[0]
        torch.testing.assert_close(after[1:], before[1:])
        x = episode.support_x[episode.members]
        torch.testing.assert_close(episode.of_support(x), before)
        x[0] = 0
        after = episode.of_support(x)
        assert after[0] != before[0]
        torch.testing.assert_close(after[1:], before[1:])


def test_what_is_wrong_is_named(learn):
    with pytest.raises(ValueError, match='no explainers'): learn.faithfulness({})
    with pytest.raises(ValueError, match="reference='mine': one of up, down"):
        learn.faithfulness({'up': Fixed(1), 'down': Fixed(-1)}, reference='mine')
    table = learn.faithfulness({'up': Fixed(1)}, **(QUICK | dict(n_episodes=1, n_randomised=0)))
    with pytest.raises(ValueError, match="no curves of 'support'"): plot_removal(table, side='support')
