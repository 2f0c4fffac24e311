"Settings of relevance propagation, besides the rules of layers"
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .composite import Composite, paper_composite

__all__ = ['Settings', 'Norm', 'Form', 'Attention']

Norm = Literal['identity', 'signed', 'fold']
Form = Literal['R', 'g']
Attention = Literal['constant', 'attnlrp']


@dataclass(frozen=True)
class Settings:
    """Settings of relevance propagation.

    Batch norm: 'identity' passes relevance unchanged, the choice of Sun et al.; right where no scale γ is negative.
    'signed' negates the weights of channels with negative γ, which equals merging batch norm and layer without biases.
    'fold' merges them with their bias, which then absorbs relevance.
    Attention: 'constant' treats the attention weights as constants, so relevance flows only through the values (Ali et al. 2022).
    'attnlrp' gives half of it to the weights and on through the softmax to queries and keys (Achtibat et al. 2024).
    Raises `ValueError` for another `norm`, `form` or `attention`.
    """
    composite: Composite = paper_composite()
    eps: float = 1e-3 # ε of sums
    norm: Norm = 'identity' # Treatment of batch, instance and group norms
    form: Form = 'R' # 'R': relevance is passed back, 'g': g with R = x·g, steadier in deep networks
    attention: Attention = 'constant' # Treatment of softmax, in attention and elsewhere

    def __post_init__(self):
        if self.norm not in get_args(Norm): raise ValueError(f'norm={self.norm!r}: choose from {get_args(Norm)}')
        if self.form not in get_args(Form): raise ValueError(f'form={self.form!r}: choose from {get_args(Form)}')
        if self.attention not in get_args(Attention):
            raise ValueError(f'attention={self.attention!r}: choose from {get_args(Attention)}')
