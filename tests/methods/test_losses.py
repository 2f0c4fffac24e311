"Losses of the methods"
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from fsc_fastai.data.episode import EpisodeLabel
from fsc_fastai.encode.encoder import create_encoder
from fsc_fastai.methods.losses import CrossAttentionLoss, EpisodeCrossEntropy, LargeMarginCosine, PrototypicalTriplet, SigmoidMSE
from fsc_fastai.methods.pairs import Pairs
from fsc_fastai.methods.proto import ProtoNet

Y = EpisodeLabel(torch.tensor([0, 2, 1, 1]), classes=(4, 0, 6))
GLOBAL = torch.tensor([4, 6, 0, 0])


def test_cross_entropy_at_every_position():
    scores = torch.randn(4, 3, 2, 5)
    each = torch.stack([F.cross_entropy(scores[..., i, j], Y.as_subclass(torch.Tensor)) for i in range(2) for j in range(5)])
    loss = EpisodeCrossEntropy()(scores, Y)
    assert_close(loss, each.mean())
    assert type(loss) is torch.Tensor


@pytest.mark.parametrize('loss', [EpisodeCrossEntropy(), SigmoidMSE(), CrossAttentionLoss(), LargeMarginCosine(),
                                  PrototypicalTriplet()])
def test_half_precision_scores_have_a_single_precision_loss(loss):
    assert loss(torch.randn(4, 3).half(), Y).dtype == torch.float32


def test_decoding_for_fastai():
    scores = torch.tensor([[1., 3., 2.]])
    assert EpisodeCrossEntropy().decodes(scores).tolist() == [1]
    assert_close(EpisodeCrossEntropy().activation(scores), scores.softmax(1))


def test_cross_attention_loss_takes_the_true_way():
    scores, global_scores = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 7, 2, 2)
    true_way = torch.stack([global_scores[i, int(y)] for i, y in enumerate(Y)])
    expected = (F.cross_entropy(true_way, GLOBAL.view(-1, 1, 1).expand(-1, 2, 2))
                + 0.5 * F.cross_entropy(scores, Y.as_subclass(torch.Tensor).view(-1, 1, 1).expand(-1, 2, 2)))
    assert_close(CrossAttentionLoss()((scores, global_scores), Y), expected)


def test_cross_attention_loss_without_a_global_part():
    scores = torch.randn(4, 3)
    assert_close(CrossAttentionLoss()(scores, Y), EpisodeCrossEntropy()(scores, Y))


def test_labels_without_their_classes_are_refused():
    output = torch.randn(4, 3, 2, 2), torch.randn(4, 3, 7, 2, 2)
    for y in (torch.tensor([0, 2, 1, 1]), EpisodeLabel(torch.tensor([0, 2, 1, 1]))):
        with pytest.raises(ValueError, match='n_classes=0'): CrossAttentionLoss()(output, y)
    with pytest.raises(ValueError, match='7 classes.*number 9'):
        CrossAttentionLoss()(output, EpisodeLabel(torch.tensor([0, 2, 1, 1]), classes=(1, 9, 3)))


def episode(distance, **kwargs):
    "Scores of a ProtoNet, and what they are made of: prototypes, queries and labels"
    torch.manual_seed(0)
    net = ProtoNet(create_encoder(nn.Identity(), img_size=2), distance=distance, **kwargs)
    prototypes, query, y = torch.randn(4, 3), torch.randn(9, 3), torch.randint(4, (9,))
    return net.classify(Pairs(prototypes, query)), prototypes, query, y


def test_large_margin_cosine():
    scores, prototypes, query, y = episode('cosine', scale=30.)
    cos = F.normalize(query) @ F.normalize(prototypes).T
    cos[range(9), y] -= .35
    assert_close(LargeMarginCosine()(scores, y), F.cross_entropy(30*cos, y))
    assert LargeMarginCosine()(scores, y) > LargeMarginCosine(0.)(scores, y)
    assert torch.equal(LargeMarginCosine(0.)(scores, y), EpisodeCrossEntropy()(scores, y))


def test_prototypical_triplet():
    scores, prototypes, query, y = episode('euclidean')
    others = torch.stack([torch.tensor([c for c in range(4) if c != k]) for k in y.tolist()]).T
    expected = torch.stack([F.triplet_margin_loss(query, prototypes[y], prototypes[o]) for o in others]).mean()
    assert_close(PrototypicalTriplet()(scores, y), expected, rtol=1e-4, atol=1e-5)
    loss = PrototypicalTriplet()
    loss.reduction = 'none'
    assert_close(loss(scores, y).mean(), expected, rtol=1e-4, atol=1e-5)


def test_prototypical_triplet_has_a_gradient_on_a_prototype():
    scores = torch.zeros(2, 3, requires_grad=True)
    PrototypicalTriplet()(scores, torch.tensor([0, 1])).backward()
    assert scores.grad.isfinite().all()
