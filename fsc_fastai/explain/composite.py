"Composites: which rule applies to which layer"
from __future__ import annotations

import copy
import difflib
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from .rules import AlphaBeta, Epsilon, Flat, Gamma, Layer, Rule

__all__ = ['Composite', 'paper_composite', 'epsilon_everywhere', 'plus_flat', 'alpha2_beta1_flat', 'GammaByDepth']

Selector = str | type | int # A layer's name (with * and ?), its class, or its position (0 first, -1 last)


class Composite:
    """Chooses the rule of a layer by name, else by position, else by class; among several matches the last entry wins.

        Composite({nn.Linear: Epsilon(1e-3), 'relation.layer1.*': Gamma(.25), 0: ZBox(-2., 2.)})

    Names are those of `model.named_modules()` and may hold `*` and `?`; positions count the layers in the order
    in which they run, from 0 or backwards from -1. Raises `TypeError` for another kind of selector and, when it is used,
    `ValueError` for a selector that matches no layer of the model.
    """
    def __init__(self,
        rules: Mapping[Selector, Rule], # Selector to rule
        base: Composite | None = None, # Rules of layers that no entry matches
    ):
        for s in rules:
            if not isinstance(s, (str, type, int)):
                raise TypeError(f'{s!r} selects no layer: use a name (str), a class or a position (int)')
        self.rules, self.base = dict(rules), base

    def __call__(self, layer: Layer, n_layers: int) -> Rule | None:
        "The rule of `layer`, one of `n_layers`, or None"
        for kind in (str, int, type):
            found = [rule for s, rule in self.rules.items() if isinstance(s, kind) and self._selects(s, layer, n_layers)]
            if found: return found[-1]
        return self.base(layer, n_layers) if self.base is not None else None

    def on(self,
        base: Composite, # Rules of layers that no entry matches
    ) -> Composite:
        "The same rules on top of a base"
        made = copy.copy(self)
        made.base = base
        return made

    def check(self,
        layers: Collection[tuple[str, type | None]], # Name and class of every layer of the model
    ) -> None:
        "Raise `ValueError` for a selector, of this composite or its base, that matches none of these layers"
        for s in self.rules:
            if isinstance(s, int): found = -len(layers) <= s < len(layers)
            elif isinstance(s, str): found = any(fnmatchcase(name, s) for name, _ in layers)
            else: found = any(kind is not None and issubclass(kind, s) for _, kind in layers)
            if not found:
                names = [name for name, _ in layers]
                near = difflib.get_close_matches(str(s), names, 4, .3) or names[:4]
                raise ValueError(f'the selector {s!r} of a Composite selects no layer. There are {len(names)}, such as '
                                 f'{", ".join(near)}')
        if self.base is not None: self.base.check(layers)

    @staticmethod
    def _selects(s: Selector, layer: Layer, n_layers: int) -> bool:
        if isinstance(s, str): return fnmatchcase(layer.name, s)
        if isinstance(s, int): return layer.position == (s if s >= 0 else n_layers + s)
        return layer.kind is not None and issubclass(layer.kind, s)

    def __repr__(self) -> str:
        return f'Composite({self.rules}' + (f', base={self.base})' if self.base is not None else ')')


class _OfAnyModel(Composite):
    "Rules for kinds of layers that a model may do without"
    def check(self, layers: Collection[tuple[str, type | None]]) -> None: pass


def paper_composite(
    eps: float = 1e-3, # ε of linear layers
    alpha: float = 1., # α of convolutions
    beta: float | None = None, # None: α − 1
) -> Composite:
    "Sun et al. 2020, section III: the ε-rule for linear layers, the α-rule for convolutions"
    return _OfAnyModel({nn.Linear: Epsilon(eps), _ConvNd: AlphaBeta(alpha, beta)})


def epsilon_everywhere(
    eps: float = 1e-3, # ε of all layers
) -> Composite:
    "The ε-rule for convolutions too: without biases and ε it is gradient × input (Shrikumar et al. 2016)"
    return _OfAnyModel({nn.Linear: Epsilon(eps), _ConvNd: Epsilon(eps)})


def plus_flat() -> Composite:
    "Rules of an encoder: z⁺ in convolutions, ε in linear layers, flat at the pixels (Kohlbrenner et al. 2020, LRP-CMP with α1β0)"
    return _OfAnyModel({nn.Linear: Epsilon(), _ConvNd: AlphaBeta(1.), 0: Flat()})


def alpha2_beta1_flat() -> Composite:
    "Rules of an encoder: α2β1 in convolutions, ε in linear layers, flat at the pixels (Kohlbrenner et al. 2020, LRP-CMP)"
    return _OfAnyModel({nn.Linear: Epsilon(), _ConvNd: AlphaBeta(2.), 0: Flat()})


class GammaByDepth(_OfAnyModel):
    "The γ-rule with a γ that falls from the pixels to the features in equal steps, to 0 at the last layer (Montavon et al. 2019)"
    def __init__(self,
        gamma: float = .25, # γ of the layer at the pixels
        rules: Mapping[Selector, Rule] | None = None, # Rules that differ for some layers
    ):
        super().__init__(rules or {})
        self.gamma = gamma

    def __call__(self, layer: Layer, n_layers: int) -> Rule:
        "The rule of `layer` among `n_layers`"
        chosen = Composite(self.rules)(layer, n_layers)
        return chosen or Gamma(self.gamma * (1 - layer.position / max(1, n_layers - 1)))
