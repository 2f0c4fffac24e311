"The steps that all methods share"
import pytest
import torch
from fastai.torch_core import TensorImage
from torch import nn
from torch.testing import assert_close

from fsc_fastai.data.episode import EpisodeLabel
from fsc_fastai.methods.base import FewShotModel, class_means, episode_way, one_hot
from fsc_fastai.tensors import cosine, plain, pool_vectors, unit

from .toys import METHODS, feature_episode, feature_model


def test_class_means_equal_the_means_of_the_classes():
    y = torch.tensor([2, 0, 1, 1, 2, 1])
    f = torch.randn(6, 4, 2, 2)
    assert_close(class_means(f, y), torch.stack([f[y == c].mean(0) for c in range(3)]))
    assert_close(class_means(f, one_hot(y)), class_means(f, y))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_class_means_keep_the_type(dtype):
    y, f = torch.arange(2).repeat(3), torch.randn(6, 4, dtype=dtype)
    assert_close(class_means(f, y), torch.stack([f[y == c].mean(0) for c in range(2)]))


def test_way_comes_from_the_classes_without_asking_the_device():
    y = EpisodeLabel(torch.zeros(3, dtype=torch.long), classes=(7, 1, 4))
    assert episode_way(y) == 3
    assert episode_way(one_hot(y)) == 3
    assert episode_way(torch.tensor([0, 2, 1, 2])) == 3
    assert episode_way(EpisodeLabel(torch.tensor([0, 1]))) == 2  # labels that carry no classes


def test_pooling_to_vectors():
    f = torch.randn(2, 3, 4, 5)
    assert_close(pool_vectors(f), f.mean((2, 3)))
    assert pool_vectors(f, 'flatten').shape == (2, 60)
    assert pool_vectors(f[:, :, 0, 0]).shape == (2, 3)


def test_unit_vectors_where_a_relu_left_nothing():
    "Equal to `F.normalize`; second derivatives, which LFT takes, are finite at 0"
    x = torch.tensor([[3., 4.], [0., 0.]], requires_grad=True)
    assert_close(unit(x), torch.nn.functional.normalize(x))
    first, = torch.autograd.grad(unit(x.relu()).square().sum() + unit(x.relu())[:, 0].sum(), x, create_graph=True)
    second, = torch.autograd.grad(first.square().sum(), x)
    assert first.isfinite().all() and second.isfinite().all() and not first[1].any()


def test_cosine_survives_half_precision():
    a, b = torch.full((1, 2, 4), 3e4, dtype=torch.float16), torch.full((3, 1, 4), 1e-4, dtype=torch.float16)
    assert_close(cosine(a, b), torch.ones(3, 2))


def test_plain_drops_fastais_subclass_only():
    p = nn.Parameter(torch.ones(2))
    assert plain(p) is p
    assert type(plain(TensorImage(torch.ones(2)))) is torch.Tensor


@pytest.mark.parametrize('method', METHODS)
def test_scores_of_fastai_tensors_are_plain(method):
    support_x, support_y, query_x, _ = feature_episode()
    model = feature_model(method)
    scores = model(TensorImage(support_x), support_y, TensorImage(query_x))
    assert type(scores) is type(model.encode(TensorImage(query_x))) is torch.Tensor and scores.shape == (15, 5)


def test_a_method_without_its_steps_says_what_it_needs():
    "Where the steps are called: a method that overrides `forward_head` needs neither"
    model = FewShotModel(nn.Identity())
    with pytest.raises(NotImplementedError, match='process'): model.process(None, None, None)
    with pytest.raises(NotImplementedError, match='classify'): model.classify(None)
