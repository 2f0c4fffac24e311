"Occlusion: how the scores change when a patch of the image is covered"
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .baselines import GradientXInput, Start
from .removal import Replace, removed, replacement
from .weights import log_odds

__all__ = ['Occlusion']


class Occlusion(GradientXInput):
    """Occlusion (Zeiler and Fergus 2014): how far R_c of equation (2) falls when a patch of the image is replaced.

    With `start='contrast'` it is the log-odds that fall, which go on telling where the probability is next to 0 or 1. Costs a
    pass of the encoder for every patch. Processed features, which have no patches, get gradient × input.
    """
    def __init__(self,
        patch: int = 8, # Side of the patches
        replace: Replace = 'mean', # Fill patches with the image's 'mean' colour, with 'blur' or 'noise'
        start: Start = 'log-odds', # What is measured: R_c, which ε bounds; 'contrast': the log-odds, which are unbounded
    ):
        if patch < 1: raise ValueError(f'Occlusion(patch={patch}): at least 1')
        super().__init__(start=start)
        self.patch, self.replace = patch, replace

    def start_of(self, scores: Tensor) -> Tensor:
        "The measured quantity of every score `(n_query, n_way)`"
        return log_odds(scores) if self.start == 'contrast' else super().start_of(scores)

    def of_images(
        self, encode: Callable[[Tensor], Tensor], score: Callable[[Tensor, Tensor], Tensor], support_x: Tensor, query_x: Tensor,
        support: bool,
    ) -> tuple[Tensor, Tensor | None]:
        "Relevance of queries and support as in `ImageRelevance`; all pixels of a patch have the same"
        f_support, f_query = encode(support_x), encode(query_x)
        before = self.start_of(score(f_support, f_query))
        def fall(f_support: Tensor, f_query: Tensor) -> Tensor: return before - self.start_of(score(f_support, f_query))

        def without_support(changed: Tensor) -> Tensor:
            f = encode(changed)
            each = torch.eye(len(f), dtype=torch.bool, device=f.device)[..., None, None, None]
            return torch.stack([fall(torch.where(i, f, f_support), f_query) for i in each], -1)
        of_query = self._of_patches(query_x, lambda changed: fall(f_support, encode(changed)))
        # a query's patches have a value for each class, (n_query, n_way); a support image's for each query, too
        of_support = self._of_patches(support_x, without_support) if support else None
        return (of_query.unsqueeze(2).expand(-1, -1, query_x.shape[1], -1, -1) / query_x.shape[1],
                None if of_support is None else
                of_support.unsqueeze(3).expand(-1, -1, -1, support_x.shape[1], -1, -1) / support_x.shape[1])

    def _of_patches(self, x: Tensor, fall: Callable[[Tensor], Tensor]) -> Tensor:
        "Heatmaps `(*, height, width)` of what falls, `(*)`, when each patch is removed from all images"
        h, w = x.shape[-2:]
        rows, columns = -(-h // self.patch), -(-w // self.patch)
        filler = replacement(x, self.replace)
        each = torch.eye(rows * columns, dtype=torch.bool, device=x.device).view(-1, 1, rows, columns)
        falls = torch.stack([fall(removed(x, filler, gone, self.patch)) for gone in each], -1)
        heat = falls.unflatten(-1, (rows, columns)).repeat_interleave(self.patch, -2).repeat_interleave(self.patch, -1)
        return heat[..., :h, :w] / self.patch**2
