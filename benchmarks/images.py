"Photograph-like JPEGs, and a peer's loader of them"
from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from easyfsl.datasets import EasySet
from easyfsl.samplers import TaskSampler
from PIL import Image
from torch.utils.data import DataLoader, Sampler
from torchvision import transforms as T

from fsc_fastai.data.episode_loader import EpisodicDL

__all__ = ['write_photos', 'peer_loader', 'N_WAY', 'N_SHOT', 'N_QUERY']

N_WAY, N_SHOT, N_QUERY = 5, 5, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_photos(n_classes: int, n_images: int, size: tuple[int, int] = (500, 375)) -> Path:
    "A temporary folder of class folders; the images of a class share colours, and are smooth with some grain"
    root, rng = Path(tempfile.mkdtemp(prefix='photos')), np.random.default_rng(0)
    for c in range(n_classes):
        folder, hue = root/f'class{c:03}', rng.uniform(0, 255, (4, 5, 3))
        folder.mkdir()
        for i in range(n_images):
            coarse = (hue + rng.normal(0, 60, hue.shape)).clip(0, 255).astype(np.uint8)
            smooth = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC), dtype=float)
            Image.fromarray((smooth + rng.normal(0, 12, smooth.shape)).clip(0, 255).astype(np.uint8)).save(folder/f'{i:03}.jpg')
    return root


class _SameEpisodes(TaskSampler):
    "easyfsl's sampler, whose constructor today's torch refuses; with a list of episodes it gives these instead of its own"
    def __init__(self, dataset: EasySet, n_tasks: int, episodes: Sequence[list[int]] | None):
        self._init_shim(dataset, n_tasks)
        self.episodes = episodes

    def _init_shim(self, dataset: EasySet, n_tasks: int) -> None:
        init, Sampler.__init__ = Sampler.__init__, lambda self, data_source=None: None  # type: ignore[method-assign]
        try: super().__init__(dataset, N_WAY, N_SHOT, N_QUERY, n_tasks)
        finally: Sampler.__init__ = init  # type: ignore[method-assign]

    def __iter__(self) -> Iterator[list[int]]: return super().__iter__() if self.episodes is None else iter(self.episodes)


class _Files(EasySet):
    "The files of a loader of ours, in its order"
    def __init__(self, dl: EpisodicDL, transform: T.Compose):
        self.images, self.labels, self.transform = [str(f) for f, _ in dl.items], dl.labels, transform
        self.class_names = list(map(str, dl.vocab))


def peer_loader(
    dl: EpisodicDL, # Whose images, with the transforms of validation
    size: int, # Of the images that the model sees
    n_episodes: int, # A pass
    same: bool = False, # The episodes of `dl`, instead of the peer's own draws
) -> DataLoader:
    "easyfsl's TaskSampler and torch's DataLoader on the images of `dl`, with the same test transform"
    squares = T.Resize((int(1.15 * size),) * 2)
    files = _Files(dl, T.Compose([squares, T.CenterCrop(size), T.ToTensor(), T.Normalize(MEAN, STD)]))
    episodes = None
    if same:
        drawn = [dl.sampler.episode(k) for k in range(n_episodes)]
        episodes = [_by_class(e.support, e.query) for e in drawn]
    random.seed(0)
    sampler = _SameEpisodes(files, n_episodes, episodes)
    return DataLoader(files, batch_sampler=sampler, num_workers=0, collate_fn=sampler.episodic_collate_fn)


def _by_class(support: list[int], query: list[int]) -> list[int]:
    "Support and queries of one class after the other, as the peer has them"
    s, q = np.array(support).reshape(N_WAY, N_SHOT), np.array(query).reshape(N_WAY, N_QUERY)
    return np.concatenate([s, q], 1).ravel().tolist()
