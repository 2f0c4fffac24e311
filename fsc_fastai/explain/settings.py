"How relevance is passed back, beside the rules of layers"
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
    """How relevance is passed back.

    Batch norm: 'identity' passes relevance unchanged, the choice of Sun et al.; right where no scale γ is negative.
    'signed' turns the weights of channels with negative γ: equal to merging batch norm and layer without biases.
    'fold' merges them with their bias, which then absorbs relevance.
    Attention: 'constant' takes the weights for constants, so that relevance flows through the values alone (Ali et al. 2022).
    'attnlrp' gives half of it to the weights, on through the softmax to queries and keys (Achtibat et al. 2024).
    Raises `ValueError` for another `norm`, `form` or `attention`.
    """
    composite: Composite = paper_composite()
    eps: float = 1e-3 # ε of sums
    norm: Norm = 'identity' # What a batch, instance or group norm does
    form: Form = 'R' # 'R': relevance is passed back, 'g': g with R = x·g, steadier in deep networks
    attention: Attention = 'constant' # What a softmax does, in attention and elsewhere

    def __post_init__(self):
        if self.norm not in get_args(Norm): raise ValueError(f'norm={self.norm!r}: choose from {get_args(Norm)}')
        if self.form not in get_args(Form): raise ValueError(f'form={self.form!r}: choose from {get_args(Form)}')
        if self.attention not in get_args(Attention):
            raise ValueError(f'attention={self.attention!r}: choose from {get_args(Attention)}')
