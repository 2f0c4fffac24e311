"Image domains that need no download: glyphs of several scripts, rendered once into fastai's data folder"
from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
from fastai.data.external import fastai_path
from filelock import FileLock
from PIL import Image, ImageOps

from ..bars import Bar
from ..files import atomic_write
from ..nearest import unknown
from .glyph_fonts import SUPERSAMPLE, fonts_with, glyph_shape, pose
from .glyph_styles import STYLES

__all__ = ['untar_glyphs', 'untar_glyph_domains', 'glyph_domains', 'class_name', 'shared']

# Part of the folder's name: raise it with every change that alters an image, and nobody trains on stale ones.
RENDERER = 2
STAMP = 'glyphs.json'


@dataclass(frozen=True)
class Script:
    "The classes of a domain by split ('' where it has none), how they look, and the start of their names in Unicode"
    style: str
    glyphs: dict[str, str]
    prefix: str


# Chosen by comparing renderings in all fonts: within a domain no two look the same, mirrored neither (but for syllabics
# and Braille, whose signs are mirrored ones of each other), and no unseen glyph looks like a Latin class.
SCRIPTS = {
    'latin': Script('printed', prefix='LATIN ', glyphs=dict(
        base='EFGHJKLOQSTUVWXYZgknrtyÆØæðŋŒƈƊƌƕƛƜƝƩƷƻȡȴȵȾɀɁɕɗɜɧɮɱɸɻʁʉʊʍʐʑʔʚʞʤʩʬⱮⱵⱷꞐꞪ',
        val='ABCNbefpÞƢƥȻȿɚɰɳʖʭʮꞍ',
        novel='DIMPRamƑƔƣƦƺǶȜɑɠɷʧⱤꜦ')),
    'greek': Script('woven', {'': 'ΔΞΨΩβδεζθικλμνξςτφχωͶϘϚϞϟϠϡϻ'}, 'GREEK '),
    'cyrillic': Script('outlined', {'': 'ЂЉЊЋДЖЛФЦЩЫЭЮЯбћѢѣѤѪѰѵҐҕҘҚңҤҬҲҵҶӃӌӘӷԐԒԔԛ'}, 'CYRILLIC '),
    'canadian': Script('glowing', {'': 'ᐂᐑᐝᐮᐲᐳᑂᑇᑏᑚᑹᑿᒘᒞᒮᓕᓘᓜᓞᓢᓧᓨᓵᓸᔃᔄᔔᔛᔧᔮᔰᔵᔼᕏᖁᖒᖓᙱᙴᙶ'}, 'CANADIAN SYLLABICS '),
    'braille': Script('embossed', {'': '⠋⠏⠙⠝⠣⠥⠩⠱⠷⠺⠻⡃⡑⡕⡘⡞⡨⡪⡻⡼⢇⢌⢑⢓⢜⢟⢣⢩⢪⢷⢻⢽⢾⣁⣊⣙⣥⣮⣳⣸'}, 'BRAILLE PATTERN '),
    'georgian': Script('defocused', {'': 'ႣႤႨႩႪႰႲႴႵႼჁადზკორფღყჭჲჵჷⴃⴄⴈⴋⴌⴏⴒⴓⴙⴜⴝⴡⴤⴥ'}, 'GEORGIAN '),
    'armenian': Script('cluttered', {'': 'ԲԳԴԵԶԷԸԹԺԻԾԿՀՁՃՄՅՆՇՉՊՋՌՎՐՒՓՔզըխծձճնչջվքֆ'}, 'ARMENIAN '),
}


def glyph_domains() -> list[str]:
    "Names of the embedded domains: the seen one ('latin') first, then the unseen ones"
    return [*SCRIPTS, 'digits']


def class_name(
    char: str, # The glyph
    prefix: str, # Of its script in Unicode's names, which is left out
) -> str:
    "Name of a class's folder: plain ASCII, and different on file systems that ignore case (`U0041_capital_a`)"
    name = unicodedata.name(char).removeprefix(prefix).replace('LETTER ', '')
    return f'U{ord(char):04X}_' + name.lower().replace(' ', '_').replace('-', '_')


def shared(
    glyphs: dict[str, str], # Of each split
    n_classes: int, # In all
) -> dict[str, str]:
    "The first glyphs of each split, `n_classes` in all, in the splits' proportions"
    total = sum(map(len, glyphs.values()))
    ends = np.cumsum([len(g) for g in glyphs.values()]) * n_classes // total
    return {split: g[:n] for (split, g), n in zip(glyphs.items(), np.diff(ends, prepend=0), strict=True)}


def _rendered_classes(
    domain: str, n_classes: int, n_images: int, size: int, seed: int,
) -> Iterator[tuple[Path, Iterator[Image.Image]]]:
    "Folder and images of each class; an image depends on its domain, glyph, number, size and seed alone"
    script = SCRIPTS[domain]
    style, key = STYLES[script.style], crc32(domain.encode())

    def image(char: str, k: int) -> Image.Image:
        rng = np.random.default_rng([seed, key, ord(char), k])
        fonts = fonts_with(char)
        shape = glyph_shape(char, fonts[rng.integers(len(fonts))], SUPERSAMPLE * size)
        return style(pose(shape, size, rng), rng)

    for split, glyphs in shared(script.glyphs, n_classes).items():
        for char in glyphs:
            yield Path(split)/class_name(char, script.prefix), (image(char, k) for k in range(n_images))


def _handwritten_digits(
    n_classes: int, n_images: int, size: int, seed: int,
) -> Iterator[tuple[Path, Iterator[Image.Image]]]:
    "Folder and images of each digit: scikit-learn's scans of 8 × 8 pixels, each another one, posed as glyphs are"
    from sklearn.datasets import load_digits
    scans = load_digits()

    def image(digit: int, k: int, scan: np.ndarray) -> Image.Image:
        ink = Image.fromarray((np.pad(scan, 1) * (255 / 16)).astype(np.uint8))
        return ImageOps.invert(pose(ink, size, np.random.default_rng([seed, digit, k]))).convert('RGB')

    for digit in range(n_classes):
        chosen = scans.images[scans.target == digit][:n_images]
        yield Path(f'digit_{digit}'), (image(digit, k, scan) for k, scan in enumerate(chosen))


def _checked_classes(domain: str, n_classes: int | None, n_images: int, size: int, seed: int) -> int:
    "The number of classes to render; a ValueError names what is out of range"
    if domain not in glyph_domains(): raise unknown('glyph domain', domain, glyph_domains())
    # The rarest digit of scikit-learn has 174 scans; renderings are without end.
    splits, most_images = ([10], 174) if domain == 'digits' else (
        [len(glyphs) for glyphs in SCRIPTS[domain].glyphs.values()], 100_000)
    n_classes = sum(splits) if n_classes is None else n_classes
    for name, value, low, high in (('n_classes', n_classes, len(splits), sum(splits)),
                                   ('n_images', n_images, 1, most_images),
                                   ('size', size, 16, 1024), ('seed', seed, 0, 2**63)):
        if not low <= value <= high: raise ValueError(f'{domain}: {name}={value}, but it must be {low} to {high}')
    return n_classes


def _write_domain(
    folder: Path, domain: str, n_classes: int, n_images: int, size: int, seed: int, progress: bool,
) -> None:
    "Write all image files of a domain, and last the stamp that says what they are"
    classes = _handwritten_digits(n_classes, n_images, size, seed) if domain == 'digits' else \
        _rendered_classes(domain, n_classes, n_images, size, seed)
    for name, images in Bar(n_classes, progress, f'rendering {domain}').through(classes):
        (folder/name).mkdir(parents=True)
        for k, image in enumerate(images): image.save(folder/name/f'{k:04}.png', compress_level=1)
    (folder/STAMP).write_text(json.dumps(dict(
        domain=domain, n_classes=n_classes, n_images=n_images, size=size, seed=seed, renderer=RENDERER), indent=1))


def untar_glyphs(
    domain: str = 'latin', # One of `glyph_domains()`
    *,
    n_classes: int | None = None, # Classes of all splits, in the proportions of the splits; None: all
    n_images: int = 60, # Images per class
    size: int = 84, # Side of the images in pixels
    seed: int = 0, # Seed of the images
    path: str | Path | None = None, # Parent of the domain's folder; None: fastai's data folder
    force: bool = False, # Render anew even if the folder exists
    progress: bool = True, # Show a progress bar
) -> Path:
    """The folder of a glyph domain, which is rendered on the first call, much as fastai's `untar_data` downloads a data set.

    Each glyph is a class; its images have random fonts, poses and colours. `latin`, the seen domain, has folders `base`, `val`
    and `novel` with 70, 20 and 20 classes. The other scripts have other styles and no splits. `digits` are scikit-learn's scans
    of real handwriting. The same arguments give the same pixels with the same releases of matplotlib's fonts, Pillow and numpy.
    Syllabics and Braille should not be flipped.

    Several processes may call it at once: one renders, the others wait, and the folder appears when it is complete. Raises
    `ValueError` for an unknown domain (and offers the nearest names) or an argument out of range.
    """
    n_classes = _checked_classes(domain, n_classes, n_images, size, seed)
    parent = fastai_path('data')/'fsc_glyphs' if path is None else Path(path)
    folder = parent/f'{domain}-{n_classes}x{n_images}-{size}px-seed{seed}-v{RENDERER}'
    if (folder/STAMP).exists() and not force: return folder
    parent.mkdir(parents=True, exist_ok=True)
    with FileLock(parent/f'.{folder.name}.lock'):
        if (folder/STAMP).exists() and not force: return folder
        # a killed process's lock dies with it
        with atomic_write(folder) as part:
            _write_domain(part, domain, n_classes, n_images, size, seed, progress)
            shutil.rmtree(folder, ignore_errors=True)
    return folder


def untar_glyph_domains(
    domains: list[str] | None = None, # Names of the domains; None: all unseen ones
    **kwargs, # Arguments of `untar_glyphs`
) -> dict[str, Path]:
    "Folders of the unseen glyph domains by name, as `dls.with_domains` takes them"
    return {name: untar_glyphs(name, **kwargs) for name in domains or glyph_domains()[1:]}
