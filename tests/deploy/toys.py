"A classifier on small pictures of plain colours, for the tests of this folder and of its web page"
import functools

import numpy as np
import torch
from PIL import Image

from fsc_fastai.deploy import FewShotClassifier, Preprocess
from fsc_fastai.methods import create_fsc_model
from tests.methods.toys import METHODS  # noqa: F401  the tests beside take it from here

COLOURS = dict(blue=(40, 60, 220), green=(40, 180, 60), grey=(128, 128, 128), red=(220, 40, 40), yellow=(230, 220, 40))


@functools.cache
def picture(colour, seed, size=40):
    "A noisy picture of about one colour"
    noise = np.random.default_rng([seed, *COLOURS[colour]]).normal(0, 40, (size, size, 3))
    return Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8))


def examples(n_shot=3, colours=COLOURS, first=0):
    "Pictures and their labels, class by class"
    pairs = [(picture(c, first + i), c) for c in colours for i in range(n_shot)]
    return [o for o, _ in pairs], [c for _, c in pairs]


def folder_of(path, n_shot=3, colours=COLOURS, first=0):
    "`examples` as files in a folder per class"
    for im, c in zip(*examples(n_shot, colours, first)):
        (path/c).mkdir(parents=True, exist_ok=True)
        im.save(path/c/f'{len(list((path/c).iterdir()))}.png')
    return path


def classifier(method='proto', arch='conv4', size=32, seed=0, keep=None, adapt=None, **kwargs):
    "An untrained classifier, whose features tell colours apart all the same"
    torch.manual_seed(seed)
    return FewShotClassifier(create_fsc_model(method, arch, img_size=size, **kwargs), Preprocess(size), adapt=adapt, keep=keep)
