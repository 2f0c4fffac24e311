"""Norms that mix the style of each image with that of the batch (Zou et al. 2024, FLoR: flatten long-range loss landscapes).

    w ⊙ IN(x) + (1 − w) ⊙ BN(x)        w ~ Beta(a, b), one draw for each image, layer and pass

So one set of weights has to do for both normalisations, and for what is between them: a minimum that is flat over a long way.
With the published a and b nearly every w is 0 or 1. The norms are part of the encoder, with weights of their own: see `flor` of
`create_encoder`.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Beta

__all__ = ['FLoRNorm2d', 'mix_norms']


class FLoRNorm2d(nn.Module):
    "Instance norm and batch norm of a map, mixed; in eval mode by the mean of the draws"
    def __init__(self,
        norm: nn.BatchNorm2d, # The batch norm to replace, which it holds; timm's with activations too
        a: float = .01, # First parameter of Beta(a, b); published for near target domains: 0.01 and 0.01
        b: float = .01, # Second parameter; published for distant domains: 0.01 and 0.026, which use the batch more
    ):
        super().__init__()
        if not (a > 0 and b > 0): raise ValueError(f'FLoR draws weights from Beta(a, b) with a, b > 0: found a={a}, b={b}')
        self.a, self.b, self.num_features = a, b, norm.num_features
        # timm's norms end in these two
        self.drop, self.act = getattr(norm, 'drop', nn.Identity()), getattr(norm, 'act', nn.Identity())
        for name in {'drop', 'act'} & dict(norm.named_children()).keys(): setattr(norm, name, nn.Identity())
        self.BN = norm
        like: dict[str, Any] = {} if norm.weight is None else dict(device=norm.weight.device, dtype=norm.weight.dtype)
        self.IN = nn.InstanceNorm2d(norm.num_features, norm.eps, affine=norm.affine, **like)
        self.IN.load_state_dict({k: v for k, v in norm.state_dict().items() if k in ('weight', 'bias')})

    @property
    def weight(self) -> nn.Parameter | None:
        "Scale of the batch norm, which tells those who look for norms how wide this one is"
        return self.BN.weight

    def extra_repr(self) -> str: return f'{self.num_features}, a={self.a}, b={self.b}'

    def draw(self, x: Tensor) -> Tensor:
        "The weight of the instance norm for each image of `x`, `(n,)`"
        a, b = (torch.full((x.shape[0],), value, device=x.device) for value in (self.a, self.b))
        return Beta(a, b, validate_args=False).sample()

    def forward(self, x: Tensor) -> Tensor:
        "Maps `(n, C, H, W)` of more than one position to maps of the same shape"
        w = self.draw(x).to(x.dtype)[:, None, None, None] if self.training else self.a / (self.a + self.b)
        return self.act(self.drop(torch.lerp(self.BN(x), self.IN(x), w)))


def mix_norms(
    body: nn.Module, # A network, or a part of one; changed in place
    a: float = .01, # First parameter of the Beta distribution
    b: float = .01, # Second parameter
) -> nn.Module:
    """Mix an instance norm into each batch norm of maps; returns `body`. Norms that are mixed already stay, with these a and b.

    Both start with the scale and shift of the batch norm. Raises `ValueError` for a network without batch norms of maps.
    """
    for m in body.modules():
        if isinstance(m, FLoRNorm2d): m.a, m.b = a, b
    found = [(name, m) for name, m in body.named_modules() if isinstance(m, nn.BatchNorm2d) and not name.endswith('.BN')]
    for name, norm in found: body.set_submodule(name, FLoRNorm2d(norm, a, b))
    if not any(isinstance(m, FLoRNorm2d) for m in body.modules()):
        raise ValueError(f'FLoR mixes instance norms into batch norms, and {type(body).__name__} has no batch norm of maps')
    return body
