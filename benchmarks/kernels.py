"""How many kernels a training step sends to a card, counted without one: nothing is computed, on PyTorch's `meta` device.

    python -m benchmarks.kernels [--size 84] [--methods RelationNet …] [--top 0]

RelationNet and GNNNet on ResNet10, CrossAttentionNet on ResNet12, 5-way 5-shot 16 queries, by fastai's `Learner.fit`: plain,
explanation-guided, with learned transformations, and both. An operation of PyTorch that is neither a view nor an allocation
counts as one kernel. The second step is counted: up to the end of the backward pass, and with the optimizer that is the default
on a GPU. An operation that would have to wait for a value raises an error.
"""
from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch
from fastai.callback.core import Callback
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.lft import ways
from benchmarks.noise import BACKBONES, N_CLASSES, N_WAY, ByLearner
from benchmarks.options import SIZE, options
from benchmarks.timing import note
from fsc_fastai.learner.fused_adam import default_optimizer
from fsc_fastai.methods import create_fsc_model

LAUNCH_NOTHING = {'_unsafe_view', '_reshape_alias', 'detach', 'lift_fresh', 'empty', 'empty_like', 'new_empty', 'empty_strided',
                  'new_empty_strided', 'resize_', 'set_', 'is_same_size'}


class Kernels(TorchDispatchMode):
    "Counts the operations that are neither views nor allocations, by name"
    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        name = func.overloadpacket.__name__
        if not view and name not in LAUNCH_NOTHING: self.found[name] += 1
        return func(*args, **(kwargs or {}))


class SecondStep(Callback):
    "Counts the kernels of the second step; the first one sets things up"
    order, run_valid = -100, False
    mode: Kernels | None = None

    def before_batch(self):
        if self.iter != 1: return
        self.mode = Kernels()
        self.mode.__enter__()

    def after_backward(self): self.backward = self.mode and Counter(self.mode.found)

    def after_batch(self):
        if self.mode is None: return
        self.mode.__exit__(None, None, None)
        self.whole, self.mode = self.mode.found, None


def counted(method: str, kind: str, size: int) -> SecondStep:
    "Run two steps of a fit without the recorder, which would ask for the loss; the callback that has counted the second"
    model = create_fsc_model(method, BACKBONES[method], n_way=N_WAY, n_classes=N_CLASSES, img_size=size).to('meta')
    run = ByLearner(size, 'meta', 2, [*ways(size, 'meta', 2)[kind](), SecondStep()], model, default_optimizer('cuda'))
    run.learn.dls.train.device = torch.device('meta')
    run.learn.remove_cb(run.learn.recorder)
    # autocast knows no device without data, and torch's optimizers do not count it among those that take all tensors together
    with (patch('torch.autocast', lambda *_, **__: nullcontext()), patch('torch.is_autocast_enabled', lambda *_: False),
          patch('torch.optim.adam._default_to_fused_or_foreach', lambda *_, **__: (False, True))):
        run()
    return run.learn.second_step


def main() -> None:
    args = options(__doc__, rounds=None, size=SIZE, methods=dict(nargs='+', default=list(BACKBONES)),
                   top=dict(type=int, default=0, help='show so many of the most frequent operations'))
    lines = ['| | to the end of the backward pass | times plain | whole step | times plain |', '|---|---|---|---|---|']
    for method in args.methods:
        found = {kind: counted(method, kind, args.size) for kind in ways(args.size, 'meta')}
        plain = found['plain']
        for kind, step in found.items():
            pairs = ((step.backward.total(), plain.backward.total()), (step.whole.total(), plain.whole.total()))
            lines.append(f'| {method}, {kind} | ' + ' | '.join(f'{n} | {n / of:.2f}' for n, of in pairs) + ' |')
            if args.top: note(f'{method}, {kind}: ' + ', '.join(f'{k} {n}' for k, n in step.backward.most_common(args.top)))
    note(f'Kernels of a step at {args.size} px:\n\n' + '\n'.join(lines))


if __name__ == '__main__': main()
