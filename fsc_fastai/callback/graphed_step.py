"A training step as one CUDA graph, captured once and replayed"
from __future__ import annotations

import random
import warnings
from collections.abc import Hashable
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from fastai.callback.core import CancelBatchException, CancelStepException
from fastai.callback.fp16 import MixedPrecision
from fastai.torch_core import num_distrib
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from ..tensors import plain
from .model import ModelCallback
from .order import GRAPHED

__all__ = ['GraphedStep', 'Waits']

aten = torch.ops.aten
_WAITS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
          aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.is_nonzero.default}
_IN_STEP = 'after_pred', 'after_loss', 'before_backward'
"Events between the end of the forward and the end of the backward pass, which a replay leaves out"


class Waits(TorchDispatchMode):
    "Collects the operations at which the host waits for the device: they need a value, or a shape that depends on values"
    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        by_mask = func is aten.index.Tensor and any(t is not None and t.dtype in (torch.bool, torch.uint8)
                                                    for t in tree_leaves(args[1]))
        if func in _WAITS or by_mask or _is_from_host(func, args, kwargs or {}): self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def _is_from_host(func: Any, args: tuple, kwargs: dict) -> bool:
    "Does an operation copy the host's values to a device?"
    if func is aten._to_copy.default: source, place = args[0].device, torch.device(kwargs.get('device') or args[0].device)
    elif func is aten.copy_.default: source, place = args[1].device, args[0].device
    else: return False
    return source.type == 'cpu' != place.type


@dataclass
class _Captured:
    "A captured step: its graph, and the tensors that the graph reads and writes"
    key: Hashable # What the step depends on besides the values of its tensors
    graph: Any
    xb: tuple
    yb: tuple
    pred: Any = None
    loss: Any = None
    loss_grad: Any = None
    params: tuple[Tensor, ...] = ()
    grads: tuple[Tensor, ...] = ()


class GraphedStep(ModelCallback):
    """Replay the training step as one CUDA graph: forward pass, relevance, losses and backward pass (see `torch.cuda.graphs`).

        learn.fit_one_cycle(5, cbs=[LRPGuidedCallback(), GraphedStep()])

    The first steps of each fit warm up, and the next one is captured. From then on each episode is copied to where the graph
    reads, and one launch computes its gradients; clipping, mixed precision's check and the optimizer follow as always. Results
    equal those without this callback.

    Without a CUDA device, or in several processes, nothing is captured; neither is a step that waits for a value of the device
    or draws random numbers on the host, nor an episode of another size. Such steps run one operation after another, and a
    warning says why, once. `reason` says why the whole fit is not captured. A callback that changes the loss has to say that it
    may be captured: its `captured` names the attributes that a captured step takes for constants, or is the reason why it can't.
    """
    order = GRAPHED
    _stateattrs = ('reason', '_captured', '_recorded', '_open', '_stream', '_warmed', '_pending', '_told')
    reason = '' # Why steps are not captured; empty if they are
    _captured: _Captured | None = None
    _recorded: tuple[_Captured, list] | None = None # The step that is being captured, and the gradients that were there before
    _open: ExitStack | None = None # of a step that is watched or captured, until its backward pass ends
    _warmed: tuple[Hashable, int] = (None, 0) # The step that was met last, and how often in a row
    _pending = False # Are there gradients that no optimizer step has used, as under accumulation?
    _told: frozenset[str] = frozenset()
    _stream: Any = None # The stream of the capture

    def __init__(self,
        warm_up: int = 3, # Steps of a fit before the one that is captured; in them libraries choose their algorithms. At least 1
    ):
        if warm_up < 1: raise ValueError(f'GraphedStep(warm_up={warm_up}): at least 1 step, to see whether it can be captured')
        self.warm_up = warm_up

    # Which steps

    def before_fit(self):
        self._forget()
        self._told, self._pending = frozenset(), False
        self.reason = '' if self.idle else self._refusal()
        if self.reason: self._tell(self.reason)

    def _refusal(self) -> str:
        "Why no step of this fit can be captured; empty if steps can"
        if not self._on_device(): return 'there is no CUDA device'
        if num_distrib() > 1: return 'several processes exchange gradients within the step'
        for cb in self.learn.cbs:
            captured = _constants(cb)
            if isinstance(captured, str): return f'{type(cb).__name__} {captured}'
        return ''

    def _tell(self, why: str) -> None:
        if why in self._told: return
        self._told |= {why}
        warnings.warn(f'GraphedStep: {why}. These steps run one operation after another', stacklevel=2)

    def _key(self) -> Hashable:
        "What a captured step takes for constants"
        shapes = tuple((tuple(t.shape), t.dtype, len(getattr(t, 'classes', ()) or ())) for t in (*self.xb, *self.yb))
        model = tuple(p.requires_grad for p in self.model.parameters()), tuple(m.training for m in self.model.modules())
        return shapes, model, tuple((type(cb), name, getattr(cb, name)) for cb in self.learn.cbs for name in _constants(cb))

    # A step

    def before_batch(self):
        if self.reason or self.idle: return
        key = self._key()
        if self._captured is not None and self._captured.key == key: self._replay(self._captured)
        same = self._warmed[0] in (None, key)
        if not same: self._tell('episodes differ in size, or what a step depends on has changed')
        self._warmed = key, self._warmed[1] + 1 if same else 1
        if self._captured is not None: return
        self._open = stack = ExitStack()
        if self._warmed[1] > self.warm_up: self._capture(key, stack)
        else: stack.enter_context(self._watched(look=self._warmed[1] == self.warm_up))

    @contextmanager
    def _watched(self, look: bool) -> Any:
        "Run a step without capturing it, on the capture's stream; with `look`, find out whether it can be captured"
        random_numbers = _host_random()
        if look: self._take_own()
        with self._warming(), (waits := Waits()) if look else ExitStack(): yield
        if look and waits.found: self.reason = f'the step waits for a value of the device ({waits.found[0]})'
        if random_numbers != _host_random(): self.reason = 'the step draws random numbers on the host'
        if self.reason: self._tell(self.reason)

    def _capture(self, key: Hashable, stack: ExitStack) -> None:
        "Record operations instead of running them, until the backward pass ends"
        self._take_own()
        step = _Captured(key, self._new_graph(), self.xb, self.yb)
        self.learn.pred = self.learn.loss = self.learn.loss_grad = None  # their autograd graph is of another stream
        before = self._taken_gradients(list(self.model.parameters()))
        self._recorded = step, before
        stack.enter_context(self._recording(step.graph))

    def _take_own(self) -> None:
        "Copy the episode to where the graph will read it"
        self.learn.xb, self.learn.yb = (tuple(map(_own, b)) for b in (self.xb, self.yb))

    def _finish(self, step: _Captured, before: list[Tensor | None]) -> None:
        "Keep what was recorded, and run it for the first time"
        learn = self.learn
        step.params = tuple(p for p in self.model.parameters() if p.grad is not None)
        step.grads = tuple(p.grad for p in step.params if p.grad is not None)
        step.pred, step.loss, step.loss_grad = (
            tree_map(lambda t: t.detach() if isinstance(t, Tensor) else t, o) for o in (learn.pred, learn.loss, learn.loss_grad))
        self._captured = step
        self._run(step, {id(p): g for p, g in zip(self.model.parameters(), before, strict=True)})

    def _replay(self, step: _Captured) -> None:
        "Run the whole step by the graph, then end the batch for fastai"
        for own, new in zip((*step.xb, *step.yb), (*self.xb, *self.yb), strict=True): _copy(own, new)
        before = dict(zip(map(id, step.params), self._taken_gradients(step.params), strict=True))
        self._run(step, before)
        for cb in self.learn.cbs:  # it entered autocast before the batch, and would leave it after the loss
            if isinstance(cb, MixedPrecision): cb.autocast.__exit__(None, None, None)
        self.learn('after_backward')
        self.learn._with_events(self.learn._step, 'step', CancelStepException)
        self.learn.opt.zero_grad()
        raise CancelBatchException

    def _run(self, step: _Captured, before: dict[int, Tensor | None]) -> None:
        "Launch the graph; gradients that were there `before` are added to its own"
        step.graph.replay()
        learn = self.learn
        learn.xb, learn.yb, learn.pred, learn.loss, learn.loss_grad = step.xb, step.yb, step.pred, step.loss, step.loss_grad
        for p, g in zip(step.params, step.grads, strict=True): p.grad = g
        found = [(p.grad, old) for p in step.params if (old := before.get(id(p))) is not None]
        if found: torch._foreach_add_(*map(list, zip(*found, strict=True)))

    def _taken_gradients(self, params: Any) -> list[Tensor | None]:
        "Copies of gradients that wait for an optimizer step, since the graph overwrites them; the parameters have none then"
        found = [p.grad.clone() if self._pending and p.grad is not None else None for p in params]
        for p in params: p.grad = None
        return found

    def after_backward(self):
        self._pending = True
        step, self._open = self._open, None
        if step is not None: step.close()
        recorded, self._recorded = self._recorded, None
        if recorded is not None: self._finish(*recorded)

    def after_step(self): self._pending = False
    def after_cancel_batch(self): self._abandon()

    def after_fit(self):
        self._forget()
        self.reason = ''

    def _abandon(self) -> None:
        "Drop a step that an error or another callback ended before its backward pass"
        step, self._open, self._recorded = self._open, None, None
        with suppress(RuntimeError):  # of a capture that failed
            if step is not None: step.close()

    def _forget(self) -> None:
        self._abandon()
        self._captured, self._warmed = None, (None, 0)

    # CUDA's part

    def _on_device(self) -> bool: return next(self.raw_model.parameters()).device.type == 'cuda'
    def _new_graph(self) -> Any: return torch.cuda.CUDAGraph()

    def _recording(self, graph: Any) -> AbstractContextManager:
        return torch.cuda.graph(graph, stream=self._stream, capture_error_mode='thread_local')

    @contextmanager
    def _warming(self) -> Any:
        "Run on the stream of the capture, because autograd's nodes that accumulate gradients keep the stream they were made on"
        if self._warmed[1] == 1: self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream): yield
        torch.cuda.current_stream().wait_stream(self._stream)


def _constants(cb: Any) -> tuple[str, ...] | str:
    "Names of a callback's attributes that a captured step takes for constants, or why the step cannot be captured"
    for kind in type(cb).__mro__:  # what a class says does not hold for a subclass that does more
        if 'captured' in vars(kind): return vars(kind)['captured']
        if kind is MixedPrecision: return 'amp_mode',
        if vars(kind).keys() & {*_IN_STEP}:
            return 'takes part in the step and does not say that it may be captured (`captured = ()`)'
    return ()


def _own(t: Tensor) -> Tensor:
    "A copy for the graph to read; with labels go the numbers of their classes, as a tensor that each episode overwrites"
    own = t.clone()
    vars(own).update(vars(t))  # whatever class fastai has made of labels
    if getattr(t, 'classes', None): own.numbers = torch.tensor(vars(t)['classes'], device=t.device)  # type: ignore[attr-defined]
    return own


def _copy(own: Tensor, new: Tensor) -> None:
    "Overwrite the tensor that the graph reads by another episode's"
    plain(own).copy_(plain(new))
    if not hasattr(own, 'numbers'): return
    vars(own)['classes'] = classes = vars(new)['classes']
    own.numbers.copy_(torch.tensor(classes), non_blocking=True)  # type: ignore[attr-defined]


def _host_random() -> tuple:
    "The states of the host's random generators, which a graph does not know"
    _, keys, position, *_ = cast(tuple, np.random.get_state())  # noqa: NPY002  what a network of the user's may draw from
    return random.getstate(), keys.tobytes(), position, torch.get_rng_state().numpy().tobytes()
