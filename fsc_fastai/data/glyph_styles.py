"The looks of the glyph domains: how the drawn shape of a glyph becomes an image with ink, paper and light"
from __future__ import annotations

from collections.abc import Callable
from colorsys import hsv_to_rgb

import numpy as np
from PIL import Image, ImageFilter

__all__ = ['STYLES', 'Style']

Style = Callable[[Image.Image, np.random.Generator], Image.Image]


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> np.ndarray:
    "A colour of any hue, `(3,)` in 0…255"
    return 255 * np.array(hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)))


def _pale(rng: np.random.Generator) -> np.ndarray: return _colour(rng, (.05, .35), (.8, 1.))


def _dark(rng: np.random.Generator) -> np.ndarray: return _colour(rng, (.4, 1.), (.1, .5))


def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    "Row and column of every pixel, from -1 to 1"
    line = np.linspace(-1, 1, size, dtype=np.float32)
    return line[:, None], line[None, :]


def _slope(size: int, rng: np.random.Generator) -> np.ndarray:
    "Brightness that changes evenly in a random direction, `(size, size)` in -1…1"
    y, x = _grid(size)
    angle = rng.uniform(0, 2 * np.pi)
    return (np.sin(angle) * y + np.cos(angle) * x) / 1.42


def _cloud(size: int, rng: np.random.Generator, cells: int) -> np.ndarray:
    "Smooth noise with about `cells` spots across, `(size, size)` in 0…1"
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) / 255


def _waves(size: int, rng: np.random.Generator) -> np.ndarray:
    "Stripes or a weave of random direction and width, `(size, size)` in 0…1"
    y, x = _grid(size)
    angle, period, phase = rng.uniform(0, np.pi), rng.uniform(6, 16), rng.uniform(0, 2 * np.pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    stripes = np.sin(period * np.pi * along + phase)
    return .5 + .5 * (stripes * np.sin(period * np.pi * across) if rng.random() < .5 else stripes)


def _coverage(shape: Image.Image) -> np.ndarray: return np.asarray(shape, dtype=np.float32)[..., None] / 255


def _blur(shape: Image.Image, radius: float) -> Image.Image: return shape.filter(ImageFilter.GaussianBlur(radius))


def _picture(pixels: np.ndarray) -> Image.Image: return Image.fromarray(np.clip(pixels + .5, 0, 255).astype(np.uint8))


def _lay(ink: np.ndarray, paper: np.ndarray, cover: np.ndarray) -> Image.Image:
    "The ink over the paper where the shape covers it"
    return _picture(paper + (ink - paper) * cover)


def printed(shape: Image.Image, rng: np.random.Generator) -> Image.Image:
    "Dark ink on pale paper in even light"
    light = 1 + .08 * _slope(shape.width, rng)[..., None]
    return _lay(_dark(rng), _pale(rng) * light, _coverage(shape))


def woven(shape: Image.Image, rng: np.random.Generator) -> Image.Image:
    "Patterned ink on cloth: stripes or a weave behind, clouds within"
    size, half = shape.width, .75
    cloth = _pale(rng) + (_colour(rng, (.1, .6), (.5, .8)) - _pale(rng)) * half * _waves(size, rng)[..., None]
    ink = _dark(rng) + 70 * (_cloud(size, rng, 9)[..., None] - .5)
    return _lay(ink, cloth, _coverage(shape))


def outlined(shape: Image.Image, rng: np.random.Generator) -> Image.Image:
    "Only the contour, as with a pen"
    soft = _coverage(_blur(shape, rng.uniform(.8, 1.3)))
    contour = np.clip(6.5 * soft * (1 - soft) - .35, 0, 1)
    return _lay(_dark(rng), np.broadcast_to(_pale(rng), (*soft.shape[:2], 3)), contour)


def glowing(shape: Image.Image, rng: np.random.Generator) -> Image.Image:
    "Bright on a dark ground, with a glow around, as a neon sign"
    colour = _colour(rng, (.2, .8), (.8, 1.))
    ground = _colour(rng, (.3, 1.), (.05, .25)) * (1 + .5 * _slope(shape.width, rng)[..., None])
    halo = rng.uniform(.3, .7) * _coverage(_blur(shape, shape.width / 20))
    return _lay(colour, ground + (colour - ground) * halo, _coverage(shape))


def embossed(shape: Image.Image, rng: np.random.Generator) -> Image.Image:
    "Pressed into paper without ink: one side of each dot lit, the other in shade"
    relief = np.asarray(_blur(shape, shape.width / 35), dtype=np.float32) / 255
    down, right = np.gradient(relief)
    angle = rng.uniform(0, 2 * np.pi)
    shade = (np.sin(angle) * down + np.cos(angle) * right) * shape.width * rng.uniform(.9, 1.6)
    grain = 14 * (_cloud(shape.width, rng, 28) - .5)
    return _picture(.85 * _pale(rng) + (8 * shade + grain)[..., None])


def defocused(shape: Image.Image, rng: np.random.Generator) -> Image.Image:
    "Out of focus and noisy, as filmed in the dark"
    soft = _coverage(_blur(shape, shape.width * rng.uniform(.02, .04)))
    noise = rng.normal(0, 12, (*soft.shape[:2], 1)).astype(np.float32)
    return _lay(_dark(rng), _colour(rng, (.05, .5), (.45, .75)) + noise, np.clip(1.3 * soft, 0, 1))


def cluttered(shape: Image.Image, rng: np.random.Generator) -> Image.Image:
    "On a wall of coloured patches, with scratches over the glyph"
    size = shape.width
    patches = rng.integers(150, 256, (5, 5, 3), dtype=np.uint8)
    wall = np.asarray(Image.fromarray(patches).resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32)
    drawn = np.asarray(_lay(_dark(rng), wall, _coverage(shape)), dtype=np.float32)
    y, x = _grid(size)
    for _ in range(rng.integers(2, 5)):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-.7, .7)
        away = np.abs(np.sin(angle) * y + np.cos(angle) * x - offset) * size / 2
        drawn = drawn + (_colour(rng, (.1, .9), (.3, 1.)) - drawn) * np.clip(1.6 - away, 0, 1)[..., None]
    return _picture(drawn)


STYLES: dict[str, Style] = {f.__name__: f for f in
    (printed, woven, outlined, glowing, embossed, defocused, cluttered)}
