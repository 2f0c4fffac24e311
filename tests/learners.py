"Small learners on images that a small net can learn within seconds: a class is a hue, an image is noise around it"
from colorsys import hsv_to_rgb
from pathlib import Path

import numpy as np
from PIL import Image

from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.learner.core import fsc_learner

SIZE = 20


def write_hues(root: Path, splits=(('base', 6), ('val', 3), ('novel', 4)), n: int = 12, seed: int = 0) -> Path:
    "Class folders of noisy images, each class of another hue; the splits' hues interleave"
    rng = np.random.default_rng(seed)
    hues = iter(rng.permutation(sum(count for _, count in splits)) / sum(count for _, count in splits))
    for split, count in splits:
        for c in range(count):
            folder = root/split/f'{split}{c}'
            folder.mkdir(parents=True)
            colour = 255*np.array(hsv_to_rgb(next(hues), 0.8, 0.7))
            for i in range(n):
                pixels = colour + rng.normal(0, 30, (SIZE, SIZE, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder/f'{i}.png')
    return root


def hue_loaders(root: Path, **kwargs) -> EpisodeDataLoaders:
    "Episodes of `write_hues`, made where they are missing"
    if not root.exists(): write_hues(root)
    settings = dict(n_way=3, n_shot=2, n_query=3, n_episodes=4, size=SIZE, device='cpu', verify=False)
    return EpisodeDataLoaders.from_folder(root, **(settings | kwargs))


def hue_learner(root: Path, method='relation', arch='conv4', cbs=None, dls_kwargs=None, **kwargs):
    "A silent learner on `hue_loaders`"
    learn = fsc_learner(hue_loaders(root, **(dls_kwargs or {})), arch, method, cbs=cbs, path=root.parent, **kwargs)
    return silent(learn)


def silent(learn):
    "Without a progress bar and a table of epochs"
    learn.remove_cb(learn.progress)
    learn.logger = lambda *args: None
    return learn


def novel_image(root: Path) -> Path:
    "One of the images of classes that are not trained on"
    return next((root/'novel'/'novel0').iterdir())


def weights(learn) -> dict:
    "A copy of the model's state"
    return {k: v.clone() for k, v in learn.model.state_dict().items()}
