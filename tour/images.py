"A new user's folders of images, made from what scikit-learn and matplotlib bring along and from textures drawn on the spot"
from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_sample_images

__all__ = ['write_all']

SIDE = 40
FORMATS = [('RGB', 'jpg'), ('RGB', 'png'), ('L', 'png'), ('RGBA', 'webp'), ('P', 'gif')] # as folders of users have them


def photographs() -> list[np.ndarray]:
    "Three photographs: a palace, a flower, a portrait"
    found = [np.asarray(image) for image in load_sample_images().images]
    with get_sample_data('grace_hopper.jpg') as f: found.append(np.asarray(Image.open(f).convert('RGB')))
    return found


def patch_of(photo: np.ndarray, row: int, column: int, rng: np.random.Generator) -> np.ndarray:
    "A look at one place of a photograph, from about there and from nearer or farther"
    side = int(rng.integers(90, 130))
    y, x = (int(np.clip(at + rng.integers(-18, 19), 0, size - side)) for at, size in zip((row, column), photo.shape))
    return np.asarray(Image.fromarray(photo[y:y + side, x:x + side]).resize((SIDE, SIDE)))


def texture(kind: int, rng: np.random.Generator) -> np.ndarray:
    "A woven, blotched or chequered cloth; its class is pattern, grain and colour"
    angle, grain = rng.uniform(-.35, .35), 3 + kind % 4
    down, right = np.mgrid[:SIDE, :SIDE] - SIDE/2
    x, y = right*np.cos(angle) + down*np.sin(angle), down*np.cos(angle) - right*np.sin(angle)
    pattern = [np.sin(x / grain), np.sin(x / grain) * np.sin(y / grain), np.sin(np.hypot(x, y) / grain),
               gaussian_filter(rng.normal(size=x.shape), grain) * 3 * grain][kind % 4 - kind // 8 % 4]
    colour = 128 + 90*np.array([np.cos(kind*2.4 + shift) for shift in (0, 2.1, 4.2)])
    noise = rng.normal(0, 12, (SIDE//4, SIDE//4, 3)).repeat(4, 0).repeat(4, 1)
    return (colour + 60*pattern[..., None] + noise).clip(0, 255).astype(np.uint8)


def write_class(folder: Path, images: list[np.ndarray]) -> None:
    "Save images in the formats of `FORMATS`, in turn"
    folder.mkdir(parents=True)
    for i, pixels in enumerate(images):
        mode, suffix = FORMATS[i % len(FORMATS)]
        Image.fromarray(pixels).convert(mode).save(folder/f'{i:02}.{suffix}')


def write_all(root: Path) -> None:
    """Write what README and recipes speak of.

    `birds` (30 classes to train on), `flowers`, `insects` (25) and `plants` (6 to test on) are folders of class folders;
    `domains` has birds with the splits base, val and novel beside plants; `examples` has a few images of three classes, `new`
    some to classify.
    """
    rng = np.random.default_rng(0)
    birds = {f'cloth{kind:02}': [texture(kind, rng) for _ in range(14)] for kind in range(30)}
    places = [(photo, row, column) for photo in photographs() for row, column in ((40, 60), (250, 350))]
    plants = {f'place{i}': [patch_of(*place, rng) for _ in range(14)] for i, place in enumerate(places)}
    for name, images in birds.items(): write_class(root/'birds'/name, images)
    for name, images in plants.items(): write_class(root/'plants'/name, images)
    for start, name in ((100, 'flowers'), (200, 'insects')):
        for kind in range(start, start + 25): write_class(root/name/f'cloth{kind}', [texture(kind, rng) for _ in range(8)])
    for i, (name, images) in enumerate(birds.items()):
        write_class(root/'domains'/'birds'/('base' if i < 20 else 'val' if i < 25 else 'novel')/name, images)
    for name, images in plants.items(): write_class(root/'domains'/'plants'/name, images)
    for name in ('place0', 'place2', 'place4'): write_class(root/'examples'/name, plants[name][:4])
    write_class(root/'new', [plants[name][5] for name in ('place0', 'place2', 'place4')])
