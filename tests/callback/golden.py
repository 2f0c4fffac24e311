"Recorded steps of training methods: their weights, images and arrays"
import json
from functools import partial

import numpy as np
import torch
from fastai.callback.core import Callback, CancelValidException
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.optimizer import SGD

from fsc_fastai.data.episode import Episode, EpisodeLabel
from fsc_fastai.encode.checkpoints import load_reference_state
from fsc_fastai.learner.core import encoder_head_splitter
from fsc_fastai.methods import create_fsc_model
from tests.learners import silent

from ..golden_files import load, noise_module, noise_state, same

OPS, MAPS, GRADIENTS = 1e-5, 1e-4, 1e-3
"How near ours must be, as parts of an array's largest value: operations; maps, scores and losses; gradients through networks"


class Step:
    "A recorded step: the arrays of a file, and the model, images and names that it is of"
    def __init__(self, path, method='gnn'):
        self.arrays, _ = load(path)
        with np.load(path) as z: keys = json.loads(str(z['keys']))
        self.way, self.shot, self.query, self.size, self.first = self['meta'].tolist()[:5]
        self.state, self.picture = noise_state(keys), noise_module().picture
        self.model = create_fsc_model(method, 'resnet10', n_way=self.way, img_size=self.size)
        report = load_reference_state(self.model, self.state)
        assert not report.missing, report.missing
        placed = self.state.keys() - {*report.unexpected}
        self.ours = {name: load_reference_state(self.model, {name: self.state[name]}).loaded[0] for name in placed}

    def __getitem__(self, key): return self.arrays[key]

    @property
    def each(self): return self.shot + self.query

    def images(self, first=None):
        "Class-major, in each class the support first: `(n, 3, size, size)`"
        first = self.first if first is None else first
        return torch.stack([torch.from_numpy(self.picture(first + i, self.size)) for i in range(self.way * self.each)])

    @property
    def order(self):
        "Places of the images in the file, all supports before all queries, as our episodes have them"
        places = torch.arange(self.way * self.each).view(self.way, self.each)
        return torch.cat([places[:, :self.shot].flatten(), places[:, self.shot:].flatten()])

    def episode(self, first=None, classes=None, images=None):
        "The episode as our loaders give it"
        x = (self.images(first) if images is None else images)[self.order]
        ways, n = torch.arange(self.way), self.way * self.shot
        y = [EpisodeLabel(ways.repeat_interleave(k), classes=classes) for k in (self.shot, self.query)]
        return Episode(x[:n], y[0], x[n:], y[1])

    def learner(self, cb, episode, n_classes=64):
        "A learner whose one step of training is on `episode`, and moves nothing; the gradients are in its `gradients`"
        dls = DataLoaders(loader := OneEpisode(episode), loader, device='cpu')
        dls.n_inp, dls.vocab = 3, list(range(n_classes))
        learn = Learner(dls, self.model, loss_func=self.model.default_loss(), cbs=[cb, Gradients()],
                        opt_func=partial(SGD, mom=0., wd=0.), lr=0., splitter=encoder_head_splitter)
        return silent(learn)

    def check_gradients(self, gradients, **extra):
        "Every recorded gradient but those of `extra`, which are given"
        for key in [k for k in self.arrays if k.startswith('g.')]:
            name = key[2:]
            same(extra[name] if name in extra else gradients[self.ours[name]], self[key], GRADIENTS, key)

    def check_buffers(self):
        "Every recorded buffer after the step"
        state = self.model.state_dict()
        for key in [k for k in self.arrays if k.startswith('after.')]: same(state[self.ours[key[6:]]], self[key], MAPS, key)


class OneEpisode:
    "A loader of one episode"
    n_inp = 3
    def __init__(self, episode): self.episode, self.dataset, self.device = episode, self, torch.device('cpu')
    def __len__(self): return 1
    def __iter__(self): yield self.episode


class Gradients(Callback):
    "The gradients of the step by name, and its loss; there is no validation"
    order = 89
    def before_validate(self): raise CancelValidException
    def before_step(self):
        self.learn.total = self.loss.detach()
        self.learn.gradients = {k: p.grad.clone() for k, p in self.model.named_parameters() if p.grad is not None}
