"The influence of each example on an answer, and examples that harm their own class"
from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from fastcore.basics import patch
from torch import Tensor

from ..explain.weights import log_odds
from .classifier import FewShotClassifier
from .support import Label, is_single

__all__: list[str] = []


@patch
@torch.no_grad()
def influence(
    self: FewShotClassifier,
    item: Any, # An image
    label: Label | None = None, # Its class; None: the likeliest
) -> pd.DataFrame:
    """The influence of each example on an answer: the log-odds of the class, log P / (1 − P), minus those without the example.

    Returns one row per example, in the order in which they were given, with `label` and `influence`: below 0 if the example
    speaks against the class, nan for the only example of a class. The result is exact. ProtoNet and CrossAttentionNet need one
    pass, since only a summand of a prototype changes; other methods need one fit per example. The temperature and an adapted
    encoder stay the same. Raises as `predict` does, and `KeyError` for an unknown class.
    """
    if not is_single(item): raise TypeError(f'influence takes one image, found a {type(item).__name__}: call it for each')
    answer, support = self.predict(item), self.support
    if label is not None and label not in answer.probabilities: raise KeyError(label)
    c = support.classes.index(answer.nearest if label is None else label)
    f = self.head.compact(self.encode(self.preprocess.pixels(item)[None]))
    without = self.head.without_each(support.features, support.member, f)[:, 0]
    lost = _log_odds(self, self.head(f))[0, c] - _log_odds(self, without)[:, c]
    return pd.DataFrame({'label': support.labels, 'influence': lost.tolist()})


@patch
@torch.no_grad()
def check_examples(self: FewShotClassifier) -> pd.DataFrame:
    """A table of examples that harm their own class, whose labels are worth a look; the least likely comes first.

    Each example is held out in turn and classified by all others; a class is as good as the mean log-odds of its held-out
    examples. `gain`, above 0 in every row, is how much this mean rises once the example is removed altogether. `own` is the
    probability of its own label when the example is held out, by which rows are sorted, and `likeliest` its likeliest class. The
    index is the position of the example in the order in which they were given. A fifth to a quarter of good examples also have a
    gain; an example with a wrong label has a small `own` and often its true class as `likeliest`. Classes of one or two examples
    cannot be checked and have no rows.

    Each example costs a fit, and one more pass or fit per example of its class (see `influence`). Raises as `predict` does.
    """
    support, n = self.support, len(self.support.labels)
    if not self.fitted: raise ValueError(self.head.problem(len(support.classes)))
    head, features, member = self.head.spare(), support.features, support.member
    own_class, positions = member.argmax(1), torch.arange(n, device=features.device)
    told, p, without = torch.full((n,), torch.nan), torch.full((n, member.shape[1]), torch.nan), torch.full((n, n), torch.nan)
    for j in range(n):
        c, others = int(own_class[j]), positions != j
        if member[others, c].sum() < 2: continue
        f, rest, fellows = features[j:j + 1], (features[others], member[others]), own_class[others] == c
        scores = head.fit(*rest)(f)[0]
        told[j], p[j] = _log_odds(self, scores)[c], (scores / self.temperature).softmax(0)
        left = _log_odds(self, head.without_each(*rest, f, fellows.nonzero()[:, 0]))[:, 0, c]
        without[positions[others][fellows].cpu(), j] = left.float().cpu()
    of_class = torch.stack([told[own_class.cpu() == c].mean() for c in own_class.tolist()])
    frame = pd.DataFrame({'label': support.labels, 'gain': (without.nanmean(1) - of_class).tolist(),
                          'own': p[range(n), own_class.tolist()].tolist(),
                          'likeliest': [support.classes[i] for i in p.argmax(1).tolist()]})
    return frame[frame.gain > 0].sort_values('own')


def _log_odds(classifier: FewShotClassifier, scores: Tensor) -> Tensor:
    return log_odds(scores.cpu().double() / classifier.temperature)  # not every device has double precision
