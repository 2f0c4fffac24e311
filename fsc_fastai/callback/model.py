"What callbacks share that reach into the model"
from __future__ import annotations

from typing import Any

from fastai.callback.core import Callback
from fastai.torch_core import get_model

__all__ = ['ModelCallback']


class ModelCallback(Callback):
    "A callback of training steps that hooks onto the parts of a model, which therefore must not be compiled"
    run_valid = False

    @property
    def raw_model(self) -> Any:
        "The model without the wrapper of distributed training"
        return get_model(self.learn.model)

    def refuse_compiled(self,
        why: str, # What a compiled model does to this callback
        spared: str = '', # A part that may be compiled
    ) -> None:
        "`ValueError` for a compiled model, or one with a compiled part"
        for name, m in get_model(self.learn.model).named_modules():
            if spared and (name == spared or name.startswith(f'{spared}.')): continue
            if hasattr(m, '_orig_mod') or m._compiled_call_impl is not None:
                also = f' Its {spared} alone may be compiled.' if spared else ''
                raise ValueError(f'{type(self).__name__}: a compiled model {why}. Train the plain model '
                                 f'(`learn.model = learn.model._orig_mod`), and compile it afterwards.{also}')
