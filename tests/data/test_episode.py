"The types of an episode"
import pickle

import torch
from fastai.torch_core import TensorImage, to_detach, to_device

from fsc_fastai.data.episode import Episode, EpisodeLabel, EpisodeSplit
from fsc_fastai.methods.base import episode_way

CLASSES = (7, 3, 9)


def flat_batch():
    y = EpisodeLabel(torch.tensor([0, 0, 1, 1, 2, 2, 0, 1, 2]), classes=CLASSES, n_support=6)
    return TensorImage(torch.arange(9.).view(9, 1, 1, 1).expand(9, 3, 4, 4)), y


def test_labels_keep_their_classes():
    y = flat_batch()[1]
    for o in (y[2:4], y.clone(), y.long(), y.to('cpu', torch.float64).long(), pickle.loads(pickle.dumps(y)), to_detach(y),
              y.to('meta')):
        assert isinstance(o, EpisodeLabel) and o.classes == CLASSES and episode_way(o) == 3


def test_split_makes_an_episode():
    episode = EpisodeSplit()(flat_batch())
    assert isinstance(episode, Episode)
    assert (episode.n_way, episode.n_shot, episode.n_query, episode.classes) == (3, 2, 1, CLASSES)
    assert episode.support_x[:, 0, 0, 0].tolist() == list(range(6)) and episode.query_x[:, 0, 0, 0].tolist() == [6, 7, 8]
    assert episode.support_y.tolist() == [0, 0, 1, 1, 2, 2] and episode.query_y.tolist() == [0, 1, 2]
    assert episode.query_y.classes == CLASSES


def test_split_leaves_other_batches_alone():
    batch = torch.zeros(4, 3, 2, 2), torch.arange(4)
    assert all(a is b for a, b in zip(EpisodeSplit()(batch), batch, strict=True))
    assert EpisodeSplit()(batch[0]) is batch[0]


def test_episode_survives_fastai():
    episode = to_device(EpisodeSplit()(flat_batch()), 'cpu')
    assert isinstance(episode, Episode) and isinstance(episode.support_x, TensorImage) and episode.classes == CLASSES


def test_flat_is_the_inverse_of_split():
    x, y = EpisodeSplit()(flat_batch()).flat()
    assert x.equal(flat_batch()[0]) and y.equal(flat_batch()[1]) and y.n_support == 6 and y.classes == CLASSES
