"""The relevance engine: it runs a network once and passes relevance back through it for any number of classes at once.

The model needs no changes and is left as it was, including its buffers, gradients, modes, hooks and the random state.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from .flow import scaled, to_relevance
from .settings import Settings
from .tracing import RelevanceMode

__all__ = ['Traced', 'trace', 'leaf', 'undisturbed', 'leak_report']


@contextmanager
def undisturbed(
    device: torch.device, # Where the computation runs
    model: nn.Module | None = None, # A model whose buffers are restored
) -> Iterator[None]:
    "Inside the block full precision and gradients; random state and buffers are restored afterwards, also after an error"
    buffers = [(b, b._version, b.detach().clone()) for b in model.buffers()] if model is not None else []
    # a graph that is being captured keeps the generator to itself
    cuda = [device] if device.type == 'cuda' and not torch.cuda.is_current_stream_capturing() else []
    try:
        with (torch.random.fork_rng(cuda), torch.inference_mode(False), torch.enable_grad(),
              torch.autocast(device.type, enabled=False)): yield
    finally:
        with torch.no_grad():
            for b, version, before in buffers:
                if b._version != version: b.copy_(before)


@dataclass
class Traced:
    "A forward pass that can send relevance back from its output to its inputs"
    out: Tensor # Output of the network
    inputs: tuple[Tensor, ...] # Inputs of the network

    def relevance(self,
        R: Tensor, # Relevance of the output, in its shape, or with a first dimension for several starts at once
        keep: bool = False, # Keep the trace for another backward pass
    ) -> tuple[Tensor, ...]:
        "Relevance of every input, with a first dimension if `R` has one; detached, in single or double precision"
        R = R.detach().to(self.out.dtype)
        batched = R.ndim > self.out.ndim
        with torch.inference_mode(False), torch.autocast(R.device.type, enabled=False):
            found = torch.autograd.grad(self.out, self.inputs, R.clone() if R.is_inference() else R, retain_graph=keep,
                                        allow_unused=True, is_grads_batched=batched)
        return tuple(torch.zeros(*R.shape[:batched], *x.shape, dtype=x.dtype, device=x.device) if r is None else r
                     for x, r in zip(self.inputs, found, strict=True))


def leaf(x: Tensor) -> Tensor:
    "A copy-free input of its own graph, in single precision at least"
    x = x.detach().as_subclass(Tensor)
    if x.is_inference(): x = x.clone()
    return (x if x.dtype == torch.float64 else x.float()).requires_grad_()


def trace(
    net: Callable[..., Tensor], # A module, or any function of tensors
    *inputs: Tensor, # Inputs whose relevance is wanted
    settings: Settings | None = None, # Settings of the propagation
    model: nn.Module | None = None, # The module that `net` runs, if it is not `net` itself
    ledger: list | None = None, # A list that collects the relevance of the output and input of each layer
) -> Traced:
    """Run `net(*inputs)` so that relevance can be passed back through it.

    Raises `NotImplementedError` for a layer without a rule, and says how to register one; `ValueError` for a selector of the
    composite that matches no layer.
    """
    settings = settings or Settings()
    if model is None and isinstance(net, nn.Module): model = net
    with undisturbed(inputs[0].device, model):
        leaves = tuple(leaf(x) for x in inputs)
        starts = [to_relevance(x) if settings.form == 'g' else scaled(x, x) for x in leaves]
        mode = RelevanceMode(settings, model, ledger)
        for x, source in zip(starts, leaves, strict=True): mode.mark_input(x, source)
        with mode: out = net(*starts)
        settings.composite.check(mode.layers())
        out = mode.end(out)
        if not out.requires_grad: raise ValueError('the output does not depend on the inputs, so it sends them no relevance')
        return Traced(out, leaves)


def leak_report(
    net: Callable[..., Tensor], # A module, or any function of tensors
    *inputs: Tensor, # Its inputs
    R: Tensor | None = None, # Relevance of the output; default: the output
    settings: Settings | None = None, # Settings of the propagation
    model: nn.Module | None = None, # The module that `net` runs, if it is not `net` itself
) -> pd.DataFrame:
    """A table of the relevance that each layer lost to stabilisers and biases (`lost`), of which at outputs of 0 (`dead`).

    One row per layer in the order of the backward pass; the last row, `(total)`, compares start and inputs.
    """
    ledger: list[Any] = []
    run = trace(net, *inputs, settings=settings, model=model, ledger=ledger)
    R = run.out.detach() if R is None else R
    found = run.relevance(R)
    rows = [(layer.name, repr(rule), out.sum(), into.sum(), sum(layer.dead or [])) for layer, rule, out, into in ledger]
    rows.append(('(total)', '', R.sum(), sum(r.sum() for r in found), float('nan')))
    return pd.DataFrame([(n, r, float(o), float(i), float(o - i), float(d)) for n, r, o, i, d in rows],
                        columns=['layer', 'rule', 'relevance_out', 'relevance_in', 'lost', 'dead'])
