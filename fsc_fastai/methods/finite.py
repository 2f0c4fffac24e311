"Errors for weights and scores that are not finite"
from __future__ import annotations

from torch import Tensor, nn

__all__ = ['finite_scores', 'check_weights']

REMEDY = 'the training has diverged: load earlier weights, or train again at a lower learning rate'


def finite_scores(
    scores: Tensor, # Scores of a model
    of: str, # What was scored, for the message of the error
) -> Tensor:
    "Return `scores`; raise `ValueError` if some are not finite, as after a training that diverged"
    if scores.isfinite().all(): return scores
    raise ValueError(f'the scores of {of} are not finite ({int((~scores.isfinite()).sum())} of {scores.numel()}): {REMEDY}')


def check_weights(
    model: nn.Module, # A model that is about to be saved
    what: str, # What is about to be done, for the message of the error
) -> None:
    "Raise `ValueError`, which names them, if weights or running statistics are not finite"
    bad = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    bad += [name for name, b in model.named_buffers() if b.isnan().any()]
    if bad:
        raise ValueError(f'{what}: {len(bad)} weights of the model are not finite, such as {bad[0]}, so that its scores are not '
                         f'finite either: {REMEDY}')
