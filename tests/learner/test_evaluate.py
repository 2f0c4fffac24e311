"Evaluation: cached equals uncached, the same episodes for every model, paired differences"
import numpy as np
import pandas as pd
import pytest
import torch

from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.data.sampler import EpisodeSampler
from fsc_fastai.learner.episode_scores import encode_images, episode_scores
from fsc_fastai.learner.evaluate import PROTOCOLS, compare, worst_domain
from fsc_fastai.learner.metrics import ci95
from fsc_fastai.methods import ProtoNet
from tests.learners import hue_learner
from tests.methods.toys import METHODS


@pytest.mark.parametrize('method', METHODS)
def test_encoding_each_image_once_equals_the_plain_loop(root, method):
    learn = hue_learner(root, method)
    learn.fit(1)  # untrained scores are so close that rounding decides
    table = learn.evaluate(n_episodes=4, n_query=5)
    dl = learn.dls.domains['novel'].new(n_way=3, n_shot=2, n_query=5, n_episodes=4, seed=0)
    with torch.no_grad():
        plain = [(learn.model(*b[:3]).argmax(1) == b[3]).float().mean().item() for b in dl]
    assert table.attrs['episodes']['novel'] == pytest.approx(plain)
    assert table.accuracy.item() == pytest.approx(np.mean(plain)) and table.ci95.item() == pytest.approx(ci95(plain))


@pytest.mark.parametrize(('method', 'transductive'), [
    *((m, False) for m in METHODS),
    *((m, True) for m in ('relation', 'can', 'proto', 'matching'))])
def test_episodes_classified_together_keep_to_themselves(root, method, transductive):
    learn = hue_learner(root, method)
    learn.fit(1)
    dl = learn.dls.domains['novel']
    features, sampler = encode_images(learn.model, dl.images()), EpisodeSampler(dl.labels, 3, 2, 5, seed=0)
    one_by_one, together = (list(episode_scores(learn.model, features, sampler, 7, transductive, at_once=n)) for n in (1, 3))
    for (episode, scores, y), (same_episode, same_scores, same_y) in zip(one_by_one, together, strict=True):
        assert episode == same_episode and torch.equal(y, same_y) and torch.equal(scores.argmax(1), same_scores.argmax(1))
        torch.testing.assert_close(scores, same_scores, rtol=1e-4, atol=1e-5)


def test_a_method_that_can_not_be_vectorised_goes_one_by_one(root):
    class Odd(ProtoNet):
        def classify(self, f_p):
            scores = super().classify(f_p)
            return scores if float(scores.mean()) > 0 else -scores.flip(1)  # a decision that depends on values
    learn = hue_learner(root, Odd)
    learn.model.eval()
    dl = learn.dls.domains['novel']
    features, sampler = encode_images(learn.model, dl.images()), EpisodeSampler(dl.labels, 3, 2, 5, seed=0)
    together, plain = ([s for _, s, _ in episode_scores(learn.model, features, sampler, 5, at_once=n)] for n in (5, 1))
    assert all(map(torch.equal, together, plain))


def test_the_frame_tells_everything(root):
    learn = hue_learner(root)
    table = learn.evaluate({'here': root/'novel', 'there': root/'val'}, n_episodes=3, n_query=4, n_way=2, n_shot=1)
    assert table.columns.tolist() == ['domain', 'way', 'shot', 'n_episodes', 'n_query', 'accuracy', 'ci95', 'protocol', 'images']
    assert table.domain.tolist() == ['here', 'there'] and (table.way == 2).all() and (table.shot == 1).all()
    assert (table.protocol == '3×4').all()
    assert PROTOCOLS['paper'].n_episodes == 2000 and PROTOCOLS['paper'].n_query == 16


def test_transductive_is_said_and_differs_in_nothing_else(root):
    learn = hue_learner(root, 'proto')
    table = learn.evaluate(n_episodes=3, n_query=4, transductive=True)
    assert table.protocol.item() == '3×4 transductive'
    with pytest.raises(TypeError, match='GNN'): hue_learner(root, 'gnn').evaluate(n_episodes=1, n_query=2, transductive=True)


def test_compare_pairs_the_episodes(root):
    a, b = hue_learner(root, 'proto').evaluate(n_episodes=6, n_query=3), hue_learner(root).evaluate(n_episodes=6, n_query=3)
    row = compare(a, b).iloc[0]
    difference = np.subtract(b.attrs['episodes']['novel'], a.attrs['episodes']['novel'])
    assert row.difference == pytest.approx(difference.mean()) and row.ci95 == pytest.approx(ci95(difference))
    assert compare(a, a).difference.item() == 0
    with pytest.raises(ValueError, match='n_episodes'): compare(a, hue_learner(root).evaluate(n_episodes=5, n_query=3))
    bare = a.copy()
    bare.attrs = {}
    with pytest.raises(ValueError, match='attrs'): compare(a, bare)


def test_confusion_counts_who_was_taken_for_whom(root):
    learn = hue_learner(root, 'relation')  # untrained: its mistakes are many, and lean one way
    matrix = learn.confusion('novel', n_episodes=30, n_query=4)
    assert matrix.index.tolist() == matrix.columns.tolist() == [f'novel{i}' for i in range(4)]
    dl = learn.dls.domains['novel']
    ids = sorted(set(dl.labels))
    taken, offered, times = np.zeros((4, 4)), np.zeros((4, 4)), np.zeros(4)
    learn.model.eval()
    tested = episode_scores(learn.model, encode_images(learn.model, dl.images()), EpisodeSampler(dl.labels, 3, 2, 4, seed=0), 30)
    for episode, scores, y in tested:
        classes = [ids.index(c) for c in episode.classes]
        for true, found in zip(y.tolist(), scores.argmax(1).tolist(), strict=True): taken[classes[true], classes[found]] += 1
        for a in classes: offered[a, classes] += 4
        times[classes] += 1
    np.testing.assert_allclose(matrix, taken / offered)
    assert not np.allclose(matrix, matrix.T)
    accuracy = learn.evaluate(n_episodes=30, n_query=4).accuracy.item()
    assert np.average(np.diag(matrix), weights=times) == pytest.approx(accuracy)


def test_worst_class_and_worst_domain(root):
    learn = hue_learner(root, 'proto')
    by_class = learn.accuracy_by_class('novel', n_episodes=20, n_query=4)
    matrix = learn.confusion('novel', n_episodes=20, n_query=4)
    assert by_class.is_monotonic_increasing and by_class.to_dict() == {c: matrix.loc[c, c] for c in matrix.index}
    table = learn.evaluate({'here': root/'novel', 'there': root/'val'}, n_episodes=3, n_query=4)
    assert worst_domain(table).accuracy == table.accuracy.min() and worst_domain(table).domain in ('here', 'there')


def test_a_file_that_is_there_twice_is_named(root):
    learn = hue_learner(root)
    files = sorted((root/'novel').rglob('*.png'))
    twice = pd.DataFrame(dict(name=files + files[7:8], label=[f.parent.name for f in files + files[7:8]]))
    with pytest.raises(ValueError, match=rf'1 files .* {files[7]} \(2 times\)'):
        learn.evaluate({'twice': twice}, n_episodes=2, n_query=2)
    with pytest.raises(ValueError, match='as support and as query'):
        EpisodeDataLoaders.from_df(twice, n_way=2, n_shot=1, n_query=1, size=20)


def test_bad_input_is_named(root):
    learn = hue_learner(root)
    with pytest.raises(ValueError, match='protocol'): learn.evaluate(protocol='mine')
    with pytest.raises(ValueError, match='of one domain, found 2'): learn.confusion({'a': root/'novel', 'b': root/'val'})
    with pytest.raises(ValueError, match='training mode'): next(episode_scores(learn.model.train(), None, None, 2))
    with pytest.raises(ValueError, match='n_way'): learn.evaluate(n_way=9, n_episodes=2, n_query=2)
    for name in ('n_episodes', 'n_way', 'n_shot', 'n_query'):
        with pytest.raises(ValueError, match=f'{name}=0: at least 1'): learn.evaluate(**{'n_episodes': 2, 'n_query': 2, name: 0})
    learn.dls.domains = {}
    with pytest.raises(ValueError, match='with_domains'): learn.evaluate()


@pytest.mark.parametrize('method', ['relation', 'proto'])
def test_episodes_of_changing_size(root, method):
    learn = hue_learner(root, method)
    learn.fit(1)
    sizes = dict(n_way=(2, 4), n_shot=(1, 2), n_query=(1, 5))
    table = learn.evaluate(n_episodes=8, **sizes)
    dl = learn.dls.domains['novel'].new(n_episodes=8, seed=0, **sizes)
    episodes = list(dl)
    assert len({(b.support_x.shape[0], b.query_x.shape[0]) for b in episodes}) > 3
    learn.model.eval()
    with torch.no_grad(): plain = [(learn.model(*b[:3]).argmax(1) == b[3]).float().mean().item() for b in episodes]
    assert table.attrs['episodes']['novel'] == pytest.approx(plain) and table.way.item() == (2, 4)
    counts = learn.confusion('novel', n_episodes=8, **sizes)
    assert counts.to_numpy().diagonal().min() >= 0 and np.nanmax(counts) <= 1
