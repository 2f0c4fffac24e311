"Losses of the methods"
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from fsc_fastai.data.episode import EpisodeLabel
from fsc_fastai.methods.losses import CrossAttentionLoss, EpisodeCrossEntropy, SigmoidMSE

Y = EpisodeLabel(torch.tensor([0, 2, 1, 1]), classes=(4, 0, 6))
GLOBAL = torch.tensor([4, 6, 0, 0])


def test_cross_entropy_at_every_position():
    scores = torch.randn(4, 3, 2, 5)
    each = torch.stack([F.cross_entropy(scores[..., i, j], Y.as_subclass(torch.Tensor)) for i in range(2) for j in range(5)])
    loss = EpisodeCrossEntropy()(scores, Y)
    assert_close(loss, each.mean())
    assert type(loss) is torch.Tensor


@pytest.mark.parametrize('loss', [EpisodeCrossEntropy(), SigmoidMSE(), CrossAttentionLoss()])
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
