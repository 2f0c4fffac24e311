"LoRA: matrices of low rank beside the linear layers of a frozen transformer, by way of `peft` (Hu et al. 2022)"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..extras import extra
from .base import register_adaptation, trainable_copy
from .pmf import PMF

__all__ = ['LoRA']


@register_adaptation('lora')
@dataclass(kw_only=True)
class LoRA(PMF):
    """`PMF` that tunes nothing but W + (alpha/rank)·B·A beside the matrices W of attention (E. Hu et al. 2022, equation (3)).

    Loss, steps and the choice of the learning rate are those of `PMF`, with the rates that its authors try on Meta-Dataset; rank
    and alpha are `peft`'s. In the end B·A is added to W, so that the adapted model is a plain one, as fast as the encoder.
    Raises `ImportError` without `peft`, and `ValueError` for an encoder that has no such layers.
    """
    lrs: tuple[float, ...] = (1e-4, 1e-3, 1e-2) # To choose from, beside 0
    rank: int = 8 # Of B·A
    alpha: float = 8. # alpha/rank is the factor of B·A
    targets: tuple[str, ...] = ('qkv',) # Ends of the names of layers; in timm's attention all three are one matrix

    def trainable(self, encoder: nn.Module) -> nn.Module:
        "A frozen copy with A and B beside its layers; B starts at 0"
        with extra('lora'): from peft import LoraConfig, inject_adapter_in_model  # noqa: I001
        adapted = trainable_copy(encoder)
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets))  # type: ignore[arg-type]
        try: inject_adapter_in_model(config, _body(adapted))
        except ValueError as e:
            raise ValueError(f'LoRA adapts layers called {" or ".join(self.targets)}, as in transformers of timm, of which this '
                             f'encoder has none that it can: give `targets`, or use PMF or TSA ({e})') from e
        return adapted

    @torch.no_grad()
    def finished(self, encoder: nn.Module) -> nn.Module:
        "The encoder with B·A added to its layers"
        from peft.tuners.tuners_utils import BaseTunerLayer
        for name, layer in list(encoder.named_modules()):
            if not isinstance(layer, BaseTunerLayer): continue
            layer.merge()
            encoder.set_submodule(name, layer.get_base_layer())
        del _body(encoder).peft_config
        return encoder


def _body(encoder: nn.Module) -> Any:
    "The backbone inside: `peft` reads a `config` that an encoder has for something else"
    return getattr(encoder, 'body', encoder)
