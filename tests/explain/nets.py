"Random networks for the tests of this folder, and what an explanation must leave as it was"
import copy

import torch
import torch.nn.functional as F
import zennit.layer
from torch import nn

from fsc_fastai.explain import LRP, GradientXInput, IntegratedGradients

OF_FEATURES = {'written out': LRP(), 'engine': LRP(engine=True), 'gradient': GradientXInput(),
               'integrated': IntegratedGradients(2)}
"Explainers of processed features, with those of both ways that LRP has"


class Residual(nn.Module):
    "Two convolutions and a functional residual sum; with `zennit` the sum is a module, which zennit needs"
    def __init__(self, n, zennit_sum=False, norm=True):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(n, n, 3, padding=1, bias=False), nn.Conv2d(n, n, 3, padding=1)
        self.norm = nn.BatchNorm2d(n) if norm else nn.Identity()
        self.act = nn.ReLU()
        if zennit_sum: self.sum = zennit.layer.Sum()

    def forward(self, x):
        y = self.conv2(self.act(self.norm(self.conv1(x))))
        if hasattr(self, 'sum'): return self.act(self.sum(torch.stack([x, y], -1)))
        y += x
        return F.relu(y, inplace=True)


def random_cnn(seed=0, norm=True, bias=True, zennit_sum=False, pool=nn.MaxPool2d, negative=False):
    "Convolutions, batch norm, pools, a residual block and two linear layers, in double precision and evaluation mode"
    torch.manual_seed(seed)
    bn = nn.BatchNorm2d if norm else nn.Identity
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=bias), bn(6), nn.ReLU(), pool(2), Residual(6, zennit_sum, norm),
                        nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=bias), bn(8), nn.ReLU(), nn.AvgPool2d(2),
                        nn.Flatten(), nn.Linear(32, 7, bias=bias), nn.ReLU(), nn.Linear(7, 4, bias=bias)).double()
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, .5, 1.5)
            if negative: m.weight.data[::2] *= -1
            nn.init.normal_(m.bias, std=.2)
            nn.init.normal_(m.running_mean, std=.2)
            nn.init.uniform_(m.running_var, .5, 2)
    return net.eval()


def images(n=2, size=16, seed=1): return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed)).double()


def state(net):
    "All that an explanation might change of a model: weights, flags, gradients, modes, hooks, attributes, random numbers"
    return (copy.deepcopy(net.state_dict()), [p.requires_grad for p in net.parameters()],
            [None if p.grad is None else p.grad.clone() for p in net.parameters()], [m.training for m in net.modules()],
            [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks), list(m.__dict__)) for m in net.modules()],
            torch.random.get_rng_state())


def assert_unchanged(before, after):
    for i in (0, 5): torch.testing.assert_close(before[i], after[i], rtol=0, atol=0)
    assert str(before[1:5]) == str(after[1:5])
