"`learn.faithfulness`: explainers compared on the same episodes"
import numpy as np
import pytest
import torch
from fastai.vision.augment import Resize
from PIL import Image
from torch import nn

from fsc_fastai.encode.encoder import Encoder
from fsc_fastai.explain import LRP, GradientXInput
from fsc_fastai.explain.explainer import Explainer
from fsc_fastai.learner.core import fsc_learner
from fsc_fastai.learner.faithfulness import plot_removal
from fsc_fastai.learner.masks import seen_masks
from tests.learners import hue_learner, hue_loaders

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
    from fsc_fastai.learner.faithfulness import ExplainedEpisode
    from fsc_fastai.learner.tested import tested_domains
    learn = hue_learner(tmp_path/'hues', 'relation')
    learn.model.eval()
    (_, dl, sampler), = tested_domains(learn, {'v': learn.dls.valid}, 1, 3, 2, 2, 0)
    episode = ExplainedEpisode(learn.model, *episode_images(dl, sampler, 0))
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


# Localisation where masks are known

class Patch(nn.Module):
    "Sees one patch of the image and nothing else"
    def forward(self, x): return x[:, :, 4:8, 12:16]


def of_one_patch(root):
    dls = hue_loaders(root, item_tfms=Resize(20, method='squish'))
    return fsc_learner(dls, Encoder(Patch(), 20, 3), 'proto', check_images=False)


def mask(file, rows=slice(4, 8), columns=slice(12, 16)):
    found = np.zeros((20, 20), dtype=bool)
    found[rows, columns] = True
    return found


def test_masks_of_a_model_that_looks_at_one_patch(tmp_path):
    "All relevance lies in the patch and none elsewhere; of a mask twice as large, and of one with half of the patch"
    learn = of_one_patch(tmp_path/'hues')
    explainer, how = {'g': GradientXInput(start='contrast')}, QUICK | dict(n_episodes=1, n_randomised=0, patches=(4,))
    def found(masks): return rows(learn.faithfulness(explainer, masks=masks, **how), side='query').set_index('measure').value
    right = found(mask)
    assert (right['mask mass'], right['mask pointing'], right['mask area']) == pytest.approx((1, 1, 16 / 400))
    wrong = found({'validation': lambda file: mask(file, slice(10, 20))})
    assert (wrong['mask mass'], wrong['mask pointing'], wrong['mask area']) == pytest.approx((0, 0, 40 / 400))
    half = found(lambda file: Image.fromarray(mask(file, slice(0, 6), slice(0, 20))))
    assert 0 < half['mask mass'] < 1 and half['mask area'] == pytest.approx(120 / 400)
    assert 'mask mass' not in found(None) and 'mask mass' not in found({'another': mask})


def test_masks_come_the_way_of_the_images(tmp_path):
    "A folder of masks beside wide images, of which the middle is cut out: a mask is where its image is white"
    for split in ('base', 'val', 'novel'):
        for c in range(3):
            for i in range(5):
                picture = np.zeros((30, 50, 3), dtype=np.uint8)
                picture[6 + i:18 + i, 15 + 5 * c:30 + 5 * c] = 255
                for file, array in ((tmp_path/'photos'/split/f'{split}{c}'/f'{i}.png', picture),
                                    (tmp_path/'masks'/f'{split}{c}'/f'{i}.gif', picture[..., 0] // 255)):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(array).save(file)
    learn = hue_learner(tmp_path/'photos', 'proto')
    dl = learn.dls.valid
    def found(positions, masks=tmp_path/'masks'): return seen_masks(learn.dls, dl, positions, masks)
    seen = found(range(len(dl.items)))
    x = next(iter(dl.images(64)))[0]
    white = (x > (x.amin((2, 3), keepdim=True) + x.amax((2, 3), keepdim=True)) / 2).all(1)
    assert seen.shape == (15, 20, 20) and torch.equal(seen, white) and .05 < seen.float().mean() < .6
    one = tmp_path/'masks'/'val1'/'3.gif'
    Image.open(one).save(one.with_suffix('.png'))
    with pytest.raises(ValueError, match='3.png has several masks: 3.gif, 3.png'): found([8])
    one.unlink()
    one.with_suffix('.png').unlink()
    with pytest.raises(FileNotFoundError, match='3.png has no mask: there is no .*val1/3'): found([8])
    with pytest.raises(ValueError, match=r'30 × 50 pixels .* its mask \(20, 20\)'): found([0], mask)


def test_what_is_wrong_is_named(learn):
    with pytest.raises(ValueError, match='no explainers'): learn.faithfulness({})
    with pytest.raises(ValueError, match="reference='mine': one of up, down"):
        learn.faithfulness({'up': Fixed(1), 'down': Fixed(-1)}, reference='mine')
    table = learn.faithfulness({'up': Fixed(1)}, **(QUICK | dict(n_episodes=1, n_randomised=0)))
    with pytest.raises(ValueError, match="no curves of 'support'"): plot_removal(table, side='support')
