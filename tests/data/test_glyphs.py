"The glyph domains: what is drawn, that it is the same everywhere, and that a folder is whole or not there"
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from fsc_fastai.data import glyphs
from fsc_fastai.data.glyph_fonts import fonts_with, glyph_shape, pose
from fsc_fastai.data.glyph_styles import STYLES
from fsc_fastai.data.glyphs import SCRIPTS, glyph_domains, untar_glyph_domains, untar_glyphs
from tests.ranks import in_child

SMALL = dict(n_classes=4, n_images=3, size=32, progress=False)


def all_glyphs(domain: str) -> str: return ''.join(SCRIPTS[domain].glyphs.values())


def files(folder: Path) -> dict[str, str]:
    "Hash of every file by its path within the folder"
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.rglob('*') if f.is_file()}


def renderings(char: str) -> np.ndarray:
    "The glyph in every font, centred and of one size, normalised for correlation: `(n_fonts, 576)`"
    rows = []
    for font in fonts_with(char):
        shape = glyph_shape(char, font, 64)
        shape = shape.crop(shape.getbbox())
        scale = 20 / max(shape.size)
        page = Image.new('L', (24, 24))
        small = shape.resize([max(1, round(side * scale)) for side in shape.size], Image.Resampling.LANCZOS)
        page.paste(small, ((24 - small.width) // 2, (24 - small.height) // 2))
        row = np.asarray(page.filter(ImageFilter.GaussianBlur(.8)), dtype=float).ravel()
        rows.append((row - row.mean()) / np.linalg.norm(row - row.mean()))
    return np.stack(rows)


@pytest.fixture(scope='module')
def latin_renderings(): return {char: renderings(char) for char in all_glyphs('latin')}


@pytest.mark.parametrize('domain', SCRIPTS)
def test_no_two_glyphs_of_a_domain_look_the_same_and_no_unseen_one_looks_latin(domain, latin_renderings):
    own = latin_renderings if domain == 'latin' else {char: renderings(char) for char in all_glyphs(domain)}
    others = {} if domain == 'latin' else latin_renderings
    chars, everything = list(own), own | others
    assert len(chars) == len(set(all_glyphs(domain))) == len(all_glyphs(domain)) and not own.keys() & others.keys()
    alike = [(a, b) for i, a in enumerate(chars) for b in list(everything)[i + 1:] if (own[a] @ everything[b].T).max() > .965]
    assert not alike


@pytest.mark.parametrize('domain', ['latin', 'greek', 'cyrillic', 'georgian', 'armenian'])
def test_a_flipped_image_stays_in_its_class(domain):
    own = {char: renderings(char) for char in all_glyphs(domain)}
    flipped = {char: rows.reshape(-1, 24, 24)[:, :, ::-1].reshape(-1, 576) for char, rows in own.items()}
    assert not [(a, b) for a in own for b in own if a < b and (own[a] @ flipped[b].T).max() > .965]


@pytest.mark.parametrize('domain', SCRIPTS)
def test_every_glyph_is_in_several_fonts(domain):
    assert min(len(fonts_with(char)) for char in all_glyphs(domain)) >= 4


def test_a_glyph_that_no_font_has_is_an_error_not_an_empty_box():
    with pytest.raises(ValueError, match=r'none of the fonts .* U\+4E00'): fonts_with('一')


def test_there_are_enough_classes_and_images():
    assert [len(SCRIPTS['latin'].glyphs[split]) for split in ('base', 'val', 'novel')] == [70, 20, 20]
    assert glyph_domains()[0] == 'latin' and {'greek', 'cyrillic', 'canadian', 'braille', 'digits'} < set(glyph_domains())
    assert all(len(all_glyphs(domain)) >= 20 for domain in SCRIPTS)


@pytest.mark.parametrize('domain', SCRIPTS)
def test_class_names_are_plain_and_differ_where_case_is_ignored(domain):
    names = [glyphs.class_name(char, SCRIPTS[domain].prefix) for char in all_glyphs(domain)]
    assert len({name.lower() for name in names}) == len(names)
    assert all(name.isascii() and name.replace('_', '').isalnum() for name in names)


def test_latin_has_splits_and_the_unseen_domains_have_classes(tmp_path):
    latin = untar_glyphs(path=tmp_path, **SMALL | dict(n_classes=11))
    assert {split.name: len(list(split.iterdir())) for split in latin.iterdir() if split.is_dir()} == dict(base=7, val=2, novel=2)
    domains = untar_glyph_domains(path=tmp_path, **SMALL)
    assert list(domains) == glyph_domains()[1:]
    for folder in domains.values():
        images = [Image.open(f) for f in sorted(folder.glob('*/*.png'))]
        assert len(images) == 12 and {(image.size, image.mode) for image in images} == {((32, 32), 'RGB')}


def test_the_stamp_says_what_the_folder_is(tmp_path):
    stamp = json.loads((untar_glyphs('digits', path=tmp_path, seed=3, **SMALL)/'glyphs.json').read_text())
    assert stamp == dict(domain='digits', n_classes=4, n_images=3, size=32, seed=3, renderer=glyphs.RENDERER)


@pytest.mark.parametrize('domain', ['latin', 'georgian', 'digits'])
def test_images_depend_on_the_seed_and_not_on_how_many_there_are(domain, tmp_path):
    one = files(untar_glyphs(domain, path=tmp_path, **SMALL))
    more = files(untar_glyphs(domain, path=tmp_path, **SMALL | dict(n_classes=6, n_images=5)))
    other = files(untar_glyphs(domain, path=tmp_path, seed=1, **SMALL))
    images = [name for name in one if name.endswith('.png')]
    assert all(one[name] == more[name] != other[name] for name in images)
    assert len({one[name] for name in images}) == len(images) == 12


def test_another_process_with_another_hash_seed_draws_the_same(tmp_path):
    here = files(untar_glyphs('cyrillic', path=tmp_path/'here', **SMALL))
    code = f'from fsc_fastai.data.glyphs import *; print(untar_glyphs("cyrillic", path={str(tmp_path/"there")!r}, **{SMALL}))'
    out = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], env=os.environ | {'PYTHONHASHSEED': '77'}, check=True,
                         capture_output=True, text=True).stdout
    assert files(Path(out.strip().splitlines()[-1])) == here


# Brightness in the four quarters. Where these change, RENDERER must change too, or old folders would pass for new ones.
DRAWN = {'printed': (243, 226, 223, 207), 'woven': (131, 126, 124, 121), 'outlined': (234, 223, 219, 209),
         'glowing': (10, 18, 18, 25), 'embossed': (150, 156, 152, 161), 'defocused': (117, 114, 114, 110),
         'cluttered': (187, 194, 181, 176)}


@pytest.mark.parametrize('style', STYLES)
def test_the_look_of_a_style_moves_only_with_the_number_of_the_renderer(style):
    assert glyphs.RENDERER == 2
    rng = np.random.default_rng(0)
    font = next(f for f in fonts_with('R') if f.endswith('DejaVuSans.ttf'))
    drawn = STYLES[style](pose(glyph_shape('R', font, 128), 64, rng), rng)
    quarters = np.asarray(drawn.convert('L').resize((2, 2), Image.Resampling.BOX), dtype=float).ravel()
    np.testing.assert_allclose(quarters, DRAWN[style], atol=2)


@pytest.mark.parametrize('seed', range(20))
def test_a_pose_keeps_the_whole_shape_in_the_image(seed):
    shape = Image.new('L', (90, 30), 255)
    posed = np.asarray(pose(shape, 48, np.random.default_rng(seed)), dtype=float)
    assert posed[[0, -1]].max() == posed[:, [0, -1]].max() == 0 and posed.max() == 255


def test_raw_pixels_do_not_solve_the_task(tmp_path):
    folder = untar_glyphs('latin', path=tmp_path, **SMALL | dict(n_classes=20, n_images=20))
    x = np.stack([np.asarray(Image.open(f), dtype=float).ravel() for f in sorted((folder/'base').glob('*/*.png'))])
    x = x.reshape(-1, 20, x.shape[-1])
    prototypes, queries = x[:, :10].mean(1), x[:, 10:].reshape(-1, x.shape[-1])
    nearest = ((queries[:, None] - prototypes) ** 2).sum(-1).argmin(1)
    assert (nearest == np.repeat(np.arange(len(x)), 10)).mean() < .35


def test_a_second_call_renders_nothing_and_force_renders_anew(tmp_path):
    folder = untar_glyphs('greek', path=tmp_path, **SMALL)
    whole = files(folder)
    next(folder.glob('*/0000.png')).unlink()
    assert files(untar_glyphs('greek', path=tmp_path, **SMALL)) != whole
    assert files(untar_glyphs('greek', path=tmp_path, force=True, **SMALL)) == whole


def test_what_a_killed_process_left_does_not_count(tmp_path):
    folder = untar_glyphs('greek', path=tmp_path, **SMALL)
    whole = files(folder)
    shutil.rmtree(folder)
    def killed():  # after the last image, before the stamp
        glyphs.json.dumps = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
        untar_glyphs('greek', path=tmp_path, **SMALL)
    assert in_child(killed) == -signal.SIGKILL and not folder.exists() and list(tmp_path.glob('.*.part/*/*.png'))
    assert files(untar_glyphs('greek', path=tmp_path, **SMALL)) == whole and not list(tmp_path.glob('.*.part'))


def test_of_several_that_start_at_once_one_renders(tmp_path, monkeypatch):
    rendered, whole = [], glyphs.atomic_write
    monkeypatch.setattr(glyphs, 'atomic_write', lambda folder: rendered.append(1) or whole(folder))
    with ThreadPoolExecutor(3) as pool:
        folders = list(pool.map(lambda _: untar_glyphs('braille', path=tmp_path, **SMALL), range(3)))
    assert len(set(folders)) == len(rendered) == 1 and len(files(folders[0])) == 13


def test_another_number_of_the_renderer_makes_another_folder(tmp_path, monkeypatch):
    before = untar_glyphs('digits', path=tmp_path, **SMALL)
    monkeypatch.setattr(glyphs, 'RENDERER', glyphs.RENDERER + 1)
    assert untar_glyphs('digits', path=tmp_path, **SMALL) != before


def test_the_folder_is_in_fastais_data_folder_by_default(tmp_path, monkeypatch):
    monkeypatch.setattr(glyphs, 'fastai_path', lambda folder: tmp_path/folder)
    assert untar_glyphs('digits', **SMALL).is_relative_to(tmp_path/'data')


@pytest.mark.parametrize('domain, args, message', [
    ('latin', dict(n_classes=2), 'latin: n_classes=2, but it must be 3 to 110'),
    ('digits', dict(n_classes=11), 'digits: n_classes=11, but it must be 1 to 10'),
    ('digits', dict(n_images=175), 'digits: n_images=175, but it must be 1 to 174'),
    ('greek', dict(n_images=0), 'greek: n_images=0'),
    ('greek', dict(size=8), 'greek: size=8, but it must be 16'),
    ('greek', dict(seed=-1), 'greek: seed=-1'),
])
def test_what_is_out_of_range_is_named(domain, args, message, tmp_path):
    with pytest.raises(ValueError, match=message): untar_glyphs(domain, path=tmp_path, **args)
    assert not list(tmp_path.iterdir())


def test_any_number_of_classes_is_shared_among_the_splits():
    splits = SCRIPTS['latin'].glyphs
    for n in range(3, 111):
        shared = glyphs.shared(splits, n)
        assert sum(map(len, shared.values())) == n and all(shared.values())
