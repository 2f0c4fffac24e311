"""Runs that are killed and started again: trainings, tables, bundles and image caches.

A child process counts all that changes files or weights (a step, a flush, a rename, a removal), and kills itself at a random
count, sometimes after cutting the file that it was writing; in a long run every other kill comes from outside, at a random time.
Started again, it must leave exactly the files of an undisturbed run.
"""
import os
import signal
import stat
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from fastai.optimizer import Optimizer
from fastai.torch_core import set_seed

from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.resume import ResumeFit
from fsc_fastai.data.glyphs import untar_glyphs
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.deploy import FewShotClassifier
from fsc_fastai.files import save_weights
from fsc_fastai.reproduce import run as runs
from fsc_fastai.reproduce.cells import Cell, Preset, Recipe
from fsc_fastai.reproduce.table_data import Data
from tests.attacks.table import Outcome
from tests.deploy.toys import classifier, examples
from tests.learners import hue_learner, write_hues
from tests.ranks import FORK, files

RECIPE = Recipe(size=28, pretrain_epochs=2, epochs=2, n_episodes=2, n_query=2)
PRESET = Preset('few', dict(RN=RECIPE), test_episodes=2, test_query=2)


def training(data: Path, folder: Path):
    "Train a learner with `fine_tune`, through both of its phases"
    set_seed(3, reproducible=True)
    learn = hue_learner(data/'hues', cbs=[LRPGuidedCallback(), ResumeFit(folder/'state.pt')], dls_kwargs=dict(n_episodes=2))
    learn.fine_tune(2, pretrain_epochs=0)
    save_weights(learn.model, folder/'weights', {})


def table(data: Path, folder: Path):
    "Compute two cells of a table that share an encoder"
    runs._commit = lambda: None  # which a result records, and which may change in the hours of a long run
    latin, greek = (next(data.glob(f'{name}-*')) for name in ('latin', 'greek'))
    for lrp in (False, True):
        runs.run_cell(Cell('RN', 1, 0, lrp), PRESET, Data('glyphs', 'latin', latin, {'greek': greek}, do_flip=False), folder)


def bundle(data: Path, folder: Path):
    "Save one classifier in the place of another"
    for seed in (0, 1):
        if seed: FewShotClassifier.from_pretrained(folder)  # whole at any time
        if seed or not (folder/'classifier.json').exists(): classifier(seed=seed).fit(*examples()).save(folder)


def cache(data: Path, folder: Path):
    "Fill a cache file with decoded images"
    dls = EpisodeDataLoaders.from_folder(data/'hues', size=20, n_way=3, n_shot=1, n_query=1, cache=folder, device='cpu')
    dls.train.one_batch()


KINDS = (training, table, bundle, cache)


class Counter:
    "Counts the moments at which a kill could do harm, and kills at one of them"
    def __init__(self, at: int = 0, cut: bool = False): self.n, self.at, self.cut = 0, at, cut

    def moment(self, file=None):
        self.n += 1
        if self.n != self.at: return
        if self.cut and file is not None and stat.S_ISREG(os.fstat(file).st_mode): os.truncate(file, os.fstat(file).st_size//2)
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(self, owner, name: str):
        call = getattr(owner, name)
        def counted(*args, **kwargs):
            self.moment(args[0] if name == 'fsync' else None)
            result = call(*args, **kwargs)
            self.moment()
            return result
        setattr(owner, name, counted)


def _child(run, counts, at, cut):
    torch.set_num_threads(1)
    counter = Counter(at, cut)
    for owner, name in ((os, 'fsync'), (os, 'replace'), (os, 'unlink'), (Optimizer, 'step')): counter.watch(owner, name)
    run()
    counts.put(counter.n)


def in_child(run, at: int = 0, cut: bool = False, seconds: float | None = None) -> tuple[int, int]:
    "Run it in a child, killed at a moment or from outside after some seconds; its exit code, and the moments that it counted"
    counts = FORK.SimpleQueue()
    child = FORK.Process(target=_child, args=(run, counts, at, cut))
    child.start()
    child.join(seconds)
    if child.is_alive(): child.kill()
    child.join()
    return child.exitcode, counts.get() if child.exitcode == 0 else 0


def prepared(data: Path) -> Path:
    "Write the images that the runs read"
    write_hues(data/'hues')
    for name, n in (('latin', 28), ('greek', 6)) if table in KINDS else ():
        untar_glyphs(name, n_classes=n, n_images=8, size=28, path=data, progress=False)
    return data


def outcomes(
    n: int, # Kills, over all kinds
    seed: int, # Draws the moments
):
    "For each kill, whether the run that was started again ended as an undisturbed one"
    with tempfile.TemporaryDirectory() as root:
        data = prepared(Path(root)/'data')
        for i, kind in enumerate(KINDS):
            rng, kills = np.random.default_rng([seed, i]), n//len(KINDS) + (i < n % len(KINDS))
            if kills: yield from _killed(kind, kills, data, Path(root)/kind.__name__, rng)


def _killed(kind, kills: int, data: Path, root: Path, rng):
    "Kill and restart runs of one kind until so many kills have hit a run before its end"
    def run_in(folder: Path): return partial(kind, data, folder)
    (root/'undisturbed').mkdir(parents=True)
    started = time.perf_counter()
    code, moments = in_child(run_in(root/'undisturbed'))
    seconds, wanted = time.perf_counter() - started, files(root/'undisturbed')
    assert code == 0 and moments and wanted
    tried = 0
    while tried < kills:
        folder = root/str(rng.integers(1 << 60))
        folder.mkdir()
        # only in a long run from outside: where such a kill hits depends on the clock, what must come of it does not
        outside = kills > 4 and tried % 2
        drawn = dict(at=int(rng.integers(moments)) + 1, cut=rng.random() < .5)
        at = dict(seconds=rng.uniform(0, seconds)) if outside else drawn
        if in_child(run_in(folder), **at)[0] != -signal.SIGKILL: continue  # it was done already
        tried += 1
        whole = in_child(run_in(folder))[0] == 0 and files(folder) == wanted
        yield Outcome(kind.__name__, 'answered' if whole else 'failed', str(at))
