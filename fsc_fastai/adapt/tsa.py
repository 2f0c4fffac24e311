"TSA, task-specific adapters: small matrices added to the convolutions of a frozen encoder (Li et al. 2022)"
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..encode.encoder import Encoder
from ..methods.base import FewShotModel, class_means
from ..methods.pairs import Pairs
from ..methods.proto import Distance, ProtoNet
from ..methods.registry import register_method
from ..tensors import Pool, plain, pool_vectors, vector_size
from .base import Adaptation, adapted_model, checked_support, register_adaptation, seeded, trainable_copy

__all__ = ['TSA', 'Adapter', 'AlignedProtoNet', 'adapted_convolutions']

Place = Literal['parallel', 'serial', 'no']


class Adapter(nn.Module):
    "Turns a convolution's output y of input x into y + A·x (parallel) or A·y + b (serial); A is a matrix or a factor per channel"
    def __init__(self,
        conv: nn.Conv2d, # The convolution
        serial: bool = False, # Serial, starting from the identity; False: parallel, starting from 1e-4 times the identity
        vector: bool = False, # A factor per channel, if input and output have equally many
    ):
        super().__init__()
        n_in, n_out = conv.out_channels if serial else conv.in_channels, conv.out_channels
        start = 1. if serial else 1e-4
        like = conv.weight.detach()
        self.stride: Any = 1 if serial else conv.stride
        self.vector = vector and n_in == n_out
        alpha = torch.ones(1, n_out) if self.vector else torch.eye(n_out, n_in)
        self.alpha = nn.Parameter(start * alpha.to(like)[..., None, None])
        self.bias = nn.Parameter(like.new_zeros(1, n_out, 1, 1)) if serial else None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        "The adapted output, from input and output of the convolution"
        if self.bias is not None: return self._times(y) + self.bias
        return y + self._times(x)

    def _times(self, x: Tensor) -> Tensor: return x * self.alpha if self.vector else F.conv2d(x, self.alpha, stride=self.stride)

    @torch.no_grad()
    def merge(self, conv: nn.Conv2d) -> None:
        "Change the convolution so that it computes the adapted output; a parallel A is added to the middle of its kernel"
        A = torch.diag_embed(self.alpha.flatten()) if self.vector else self.alpha[..., 0, 0]
        if self.bias is None: conv.weight[:, :, 1, 1] += A
        else:
            conv.weight.copy_(torch.einsum('oi,ichw->ochw', A, conv.weight))
            before = 0 if conv.bias is None else A @ conv.bias
            conv.bias = nn.Parameter(before + self.bias.flatten())


def adapted_convolutions(encoder: nn.Module) -> dict[str, nn.Conv2d]:
    """The 3×3 convolutions after the first convolution, by name: those in the residual blocks of a ResNet.

    Raises `ValueError` if there are none, as in transformers.
    """
    convs = {name: m for name, m in encoder.named_modules() if isinstance(m, nn.Conv2d)}
    found = {name: m for name, m in list(convs.items())[1:]
             if (m.kernel_size, m.padding, m.dilation, m.groups) == ((3, 3), (1, 1), (1, 1), 1)}
    if not found:
        raise ValueError('TSA adapts 3×3 convolutions, of which this encoder has none behind its first layer: use PMF'
                         ' or FineTune')
    return found


@register_method('aligned')
class AlignedProtoNet(ProtoNet):
    "A prototypical network on features W·x; W, the weight of `align`, starts as the identity (Li et al. 2022)"
    def __init__(self,
        encoder: Encoder, # Images to feature maps, with `out_shape`
        n_way: int = 5, # Ignored: this method classifies any number of classes
        n_classes: int = 0, # Ignored: this method has no global classifier
        distance: Distance = 'cosine', # 'euclidean' (squared, negative) or 'cosine'
        scale: float = 10., # Factor of the cosine
        pool: Pool = 'avg', # How maps become vectors: 'avg' or 'flatten'
    ):
        super().__init__(encoder, n_way, n_classes, distance, scale, pool)
        size = vector_size(encoder.out_shape, pool)
        self.align = nn.Linear(size, size, bias=False)
        with torch.no_grad(): nn.init.eye_(self.align.weight)

    def process(self, f_support: Tensor, support_y: Tensor, f_query: Tensor) -> Pairs:
        "Class prototypes and queries as aligned vectors"
        support, query = (self.align(pool_vectors(f, self.pool)) for f in (f_support, f_query))
        return Pairs(class_means(support, support_y), query)


@register_adaptation('tsa')
@dataclass(kw_only=True)
class TSA(Adaptation):
    """Learn adapters of the 3×3 convolutions and a linear alignment of the features on the support (Li et al. 2022, URL).

    The encoder is frozen, with batch norms in eval mode. Loss and scores are those of `PA`. The default learning rates are for
    unseen domains; for seen ones URL takes 0.05 and 0.1. In the end the adapters are merged into the convolutions, so the
    adapted model is as fast as the encoder.
    """
    steps: int = 40 # Steps of Adadelta
    lr: float = 0.5 # Learning rate of the adapters
    lr_beta: float = 1. # Learning rate of the alignment
    adapters: Place = 'parallel' # 'serial': after the convolutions (URL with lr 0.01); 'no': only the alignment, as in `PA`
    vector: bool = False # A factor per channel instead of a matrix (URL with lr 1)
    align: bool = True # Learn the alignment
    similarity: Literal['cosine', 'euclidean'] = 'cosine' # 'euclidean': negative squared distances, without `scale`
    scale: float = 10. # Factor of the cosine

    def __call__(self,
        model: FewShotModel, support_x: Tensor, support_y: Tensor, query_x: Tensor | None = None,
    ) -> AlignedProtoNet:
        "An `AlignedProtoNet` whose encoder has the adapters merged into it"
        y, x = checked_support(self, support_y), plain(support_x)
        with seeded(0, x.device):
            encoder = trainable_copy(model.encoder).requires_grad_(False)
            adapted = adapted_model(AlignedProtoNet, encoder, int(y.max()) + 1, distance=self.similarity, scale=self.scale).to(x)
            adapters = self.start(encoder)
            self.tune(adapted, adapters, x, y)
            for name, adapter in adapters.items(): adapter.merge(cast(nn.Conv2d, encoder.get_submodule(name)))
        return adapted.eval().requires_grad_(False)

    def start(self, encoder: nn.Module) -> dict[str, Adapter]:
        "The untrained adapters of an encoder, by the name of the convolution"
        if self.adapters == 'no': return {}
        return {name: Adapter(conv, self.adapters == 'serial', self.vector)
                for name, conv in adapted_convolutions(encoder).items()}

    def tune(self,
        model: AlignedProtoNet, # In eval mode; its alignment is learned in place
        adapters: dict[str, Adapter], # Learned in place
        x: Tensor, # Images `(n_support, channels, height, width)`
        y: Tensor, # Labels `(n_support,)`
    ) -> Tensor:
        "Learn adapters and alignment; returns the loss of every step `(steps,)`"
        model.align.requires_grad_(self.align)
        groups: list[dict[str, Any]] = []
        if adapters: groups.append(dict(params=[p for a in adapters.values() for p in a.parameters()], lr=self.lr))
        if self.align: groups.append(dict(params=list(model.align.parameters()), lr=self.lr_beta))
        optimizer, losses = torch.optim.Adadelta(groups, rho=0.9, eps=1e-6), []
        fixed = None if adapters else model.encode(x).detach()
        for _ in range(self.steps):
            with attached(model.encoder, adapters): f = model.encode(x) if fixed is None else fixed
            loss = F.cross_entropy(model.forward_head(f, y, f), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses) if losses else x.new_zeros(0)


@contextmanager
def attached(
    encoder: nn.Module, # The encoder with the convolutions
    adapters: dict[str, Adapter], # Adapters by the name of the convolution
) -> Iterator[None]:
    "Apply the adapters inside the block"
    hooks = [encoder.get_submodule(name).register_forward_hook(lambda conv, args, out, a=adapter: a(args[0], out))
             for name, adapter in adapters.items()]
    try: yield
    finally:
        for hook in hooks: hook.remove()
