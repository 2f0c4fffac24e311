"An error in the place of an answer that is not a number"
from __future__ import annotations

from torch import Tensor, nn

__all__ = ['finite_scores', 'check_weights']

REMEDY = 'the training has diverged: load earlier weights, or train again at a lower learning rate'


def finite_scores(
    scores: Tensor, # Scores of a model
    of: str, # What was scored, for the error
) -> Tensor:
    "The scores as they are. Raises `ValueError` where some are not finite, as those of a model that diverged in training"
    if scores.isfinite().all(): return scores
    raise ValueError(f'the scores of {of} are not finite ({int((~scores.isfinite()).sum())} of {scores.numel()}): {REMEDY}')


def check_weights(
    model: nn.Module, # Whose weights are about to be written
    what: str, # What is about to be done with it, for the error
) -> None:
    "Raises `ValueError` naming weights and running statistics that are not finite: nothing that they score would be, either"
    bad = [name for name, p in model.named_parameters() if not p.isfinite().all()]
    bad += [name for name, b in model.named_buffers() if b.isnan().any()]
    if bad:
        raise ValueError(f'{what}: {len(bad)} weights of the model are not finite, such as {bad[0]}, so that its scores are not '
                         f'finite either: {REMEDY}')
