"Shapes of glyphs from the fonts that matplotlib ships, and their pose in an image"
from __future__ import annotations

import math
import re
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

__all__ = ['fonts_with', 'glyph_shape', 'pose']

# Text families with regular cmaps; STIX's NonUni and Computer Modern's symbol fonts put other shapes at a letter's place.
TEXT_FONTS = re.compile(r'(DejaVu(Sans|SansMono|Serif)(-\w+)?|STIXGeneral\w*|cm(r|b|ss|ti|tt)10)\.ttf')
SUPERSAMPLE = 2


@lru_cache
def _cmaps() -> dict[str, frozenset[int]]:
    "The code points that each font file truly has, by its path, in the order of the files' names"
    folder = Path(matplotlib.get_data_path())/'fonts'/'ttf'
    files = [f for f in sorted(folder.glob('*.ttf')) if TEXT_FONTS.fullmatch(f.name)]
    if not files: raise FileNotFoundError(f'matplotlib has no DejaVu, STIX or Computer Modern fonts in {folder}: reinstall it')
    return {str(f): frozenset(TTFont(f, lazy=True).getBestCmap()) for f in files}


@lru_cache(4096)
def fonts_with(char: str) -> tuple[str, ...]:
    "Paths of the fonts that have a glyph for `char`; a ValueError if there is none"
    fonts = tuple(path for path, codes in _cmaps().items() if ord(char) in codes)
    if not fonts: raise ValueError(f'none of the fonts that matplotlib ships has U+{ord(char):04X} {char!r}')
    return fonts


@lru_cache(64)
def _font(path: str, em: int) -> ImageFont.FreeTypeFont:
    # The basic layout is in every build of Pillow; raqm, where present, would move the glyphs.
    return ImageFont.truetype(path, em, layout_engine=ImageFont.Layout.BASIC)


@lru_cache(256)
def glyph_shape(
    char: str, # One character
    font: str, # Path of a font that has it
    em: int, # Font size in pixels
) -> Image.Image:
    "The drawn glyph, cut out: greyscale, 255 where there is ink, with an empty pixel all round"
    left, top, right, bottom = _font(font, em).getbbox(char)
    canvas = Image.new('L', (math.ceil(right - left) + 4, math.ceil(bottom - top) + 4))
    ImageDraw.Draw(canvas).text((2 - left, 2 - top), char, font=_font(font, em), fill=255)
    x0, y0, x1, y1 = canvas.getbbox() or (1, 1, 2, 2)
    return canvas.crop((x0 - 1, y0 - 1, x1 + 1, y1 + 1))


def pose(
    shape: Image.Image, # Greyscale shape of any size
    size: int, # Side of the result in pixels
    rng: np.random.Generator, # Source of the pose
) -> Image.Image:
    "The shape rotated, sheared, stretched, scaled and moved at random, whole within a `size` × `size` image"
    full = size * SUPERSAMPLE
    angle, shear, stretch = rng.uniform(-.3, .3), rng.uniform(-.2, .2), rng.uniform(-.12, .12)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = turn @ np.array([[1 + stretch, shear], [0, 1 - stretch]])
    matrix *= rng.uniform(.5, .8) * full / max(shape.size)
    extent = np.abs(matrix) @ shape.size
    matrix *= min(1, .96 * full / extent.max())
    room = np.minimum((full - np.abs(matrix) @ shape.size) / 2, .15 * full)
    centre = full / 2 + room * rng.uniform(-1, 1, 2)
    back = np.linalg.inv(matrix)
    shift = np.array(shape.size) / 2 - back @ centre
    coefficients = (*back[0], shift[0], *back[1], shift[1])
    return shape.transform((full, full), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC).reduce(SUPERSAMPLE)
