"Grad-CAM: the positions of the last feature map that speak for a class"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .baselines import GradientXInput
from .engine import Traced

__all__ = ['GradCAM']


class GradCAM(GradientXInput):
    """Grad-CAM (Selvaraju et al. 2017): the positive part of a sum of the last feature maps, weighted by their mean gradient.

    The gradient is that of the log-odds of a class, and the map is resized to the image. Processed features, which are no maps of
    an image, get gradient × input.
    """
    def __init__(self): super().__init__(start='contrast')

    def __call__(self, model: nn.Module, f_p: Any) -> Tensor:
        "Gradient × input of the processed features"
        return GradientXInput(self.eps)(model, f_p)

    def trace(self, net: Callable[..., Tensor], *inputs: Tensor, model: nn.Module | None = None, deep: bool = False) -> Traced:
        "Run `net`; the map of a deep network is resized to the image on its way back"
        run = super().trace(net, *inputs, model=model, deep=deep)
        return _DrawnLarge(run.out.detach(), run.inputs) if deep else run

    def finish(self, x: Tensor, flow: Tensor) -> Tensor:
        "The flow, which is relevance already"
        return flow


class _DrawnLarge(Traced):
    "A run whose maps are brought to the size of the images"
    def relevance(self, R: Tensor, keep: bool = False) -> tuple[Tensor, ...]:
        x, weights = self.inputs[0], R.mean((-2, -1), keepdim=True)
        cam = (weights * self.out).sum(-3).relu()
        large = F.interpolate(cam.flatten(0, -3)[:, None], x.shape[-2:], mode='bilinear', align_corners=False)
        return ((large / x.shape[-3]).expand(-1, *x.shape[1:]).view(*R.shape[:-3], *x.shape[1:]),)
