"The exported classifier without torch and fastai: the same answers, whatever the images are like"
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fsc_fastai
from fsc_fastai.deploy import FewShotClassifier, Preprocess
from fsc_fastai.light import LightClassifier
from fsc_fastai.methods import create_fsc_model
from tests.deploy.toys import classifier, examples, picture

ROOT = str(Path(fsc_fastai.__file__).parents[1])
SIZES = [(40, 40), (100, 37), (23, 90), (200, 133), (1, 60), (7, 5)]


def noise(width, height, mode='RGB'):
    channels = len(Image.new(mode, (1, 1)).getbands())
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0], mode)


class Light(LightClassifier):
    "Its preprocessing alone"
    def __init__(self, preprocess): self.values = json.loads(json.dumps(dict(preprocess=vars(preprocess))))


@pytest.mark.parametrize('wanted', [
    Preprocess(32), Preprocess(32, fit='crop'), Preprocess(32, fit='pad'), Preprocess((24, 40), (30, 50), 'crop'),
    Preprocess((40, 24), (50, 30), 'pad'), Preprocess(32, 32, 'crop', mean=(.5,), std=(.2,)),
    Preprocess(20, fit='pad', mean=(.5,), std=(.3,))], ids=str)
def test_images_are_prepared_as_by_the_classifier(wanted):
    for size in SIZES:
        im = noise(*size)
        np.testing.assert_allclose(Light(wanted).pixels(im), wanted([im])[0].numpy(), rtol=0, atol=1e-5, err_msg=str(size))


def test_files_of_every_kind_are_opened_as_by_the_classifier(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    noise(50, 30).save(tmp_path/'turned.jpg', exif=exif)
    for mode in ('L', 'RGBA', 'LA'): noise(30, 40, mode).save(tmp_path/f'{mode}.png')
    noise(30, 40).convert('CMYK').save(tmp_path/'cmyk.jpg')
    noise(30, 40).convert('P').save(tmp_path/'palette.gif')
    Image.fromarray(np.linspace(0, 65535, 1200).reshape(30, 40).astype(np.uint16)).save(tmp_path/'deep.png')
    for orient in (True, False):
        wanted = Preprocess(32, orient=orient)
        for f in sorted(tmp_path.iterdir()):
            np.testing.assert_allclose(Light(wanted).pixels(f), wanted([f])[0].numpy(), rtol=0, atol=1e-5, err_msg=f.name)
    assert Light(wanted).pixels(io.BytesIO((tmp_path/'L.png').read_bytes())).shape == (3, 32, 32)


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    "A classifier with both thresholds, and the folder that it was exported to"
    known = classifier(keep=.8).fit(*examples(4))
    known.reject = .25
    return known, known.to_onnx(tmp_path_factory.mktemp('onnx'), check=False)


def test_answers_are_those_of_the_classifier(exported):
    known, folder = exported
    images = [*(picture(c, i) for c in ('red', 'grey', 'yellow') for i in range(60, 66)), noise(80, 50), noise(30, 40)]
    light = LightClassifier(folder)
    np.testing.assert_allclose(light.predict_proba(images), known.predict_proba(images), rtol=0, atol=1e-4)
    ours, wanted = light.predict_batch(images), known.predict_batch(images)
    assert [o.label for o in ours] == [o.label for o in wanted] and {None} < {o.label for o in ours}
    assert [o.strangeness for o in ours] == pytest.approx([o.strangeness for o in wanted], abs=1e-5)
    assert light.classes_ == known.classes_.tolist() and light.predict_batch([]) == []
    assert light.predict(images[0]).label == ours[0].label


@pytest.mark.parametrize('method, kwargs', [('relation', {}), ('proto', dict(pool='flatten', distance='cosine'))])
def test_strangeness_of_maps_and_of_flat_vectors(method, kwargs, tmp_path):
    known = FewShotClassifier(create_fsc_model(method, 'conv4', img_size=32, **kwargs), Preprocess(32), keep=.7).fit(*examples(3))
    light = LightClassifier(known.to_onnx(tmp_path, check=False))
    images = [picture('red', i) for i in range(60, 64)]
    np.testing.assert_allclose(light.scores(images)[1], known.strangeness(images), rtol=0, atol=1e-5)
    np.testing.assert_allclose(light.predict_proba(images), known.predict_proba(images), rtol=0, atol=1e-4)


def run(*args, cwd):
    return subprocess.run([sys.executable, *args], cwd=cwd, capture_output=True, text=True, env=os.environ | {'PYTHONPATH': ROOT})


def test_the_command_needs_neither_torch_nor_fastai(exported, tmp_path):
    known, folder = exported
    (tmp_path/'new').mkdir()
    for c in ('green', 'red'): picture(c, 60).save(tmp_path/'new'/f'{c}.png')
    (tmp_path/'new'/'broken.png').write_bytes(b'nothing')
    code = '''if True:
        import runpy, sys
        try: runpy.run_module('fsc_fastai.light', run_name='__main__')
        finally: print({'torch', 'fastai', 'fastcore', 'pandas', 'scipy', 'safetensors', 'matplotlib'} & sys.modules.keys())'''
    ran = run('-c', code, folder, 'new', '--format', 'json', cwd=tmp_path)
    rows, _, imported = ran.stdout.rstrip().rpartition('\n')
    assert imported == 'set()' and ran.returncode == 1 and 'broken.png' in ran.stderr
    assert [(o['file'], o['label']) for o in json.loads(rows)] == [('new/green.png', 'green'), ('new/red.png', 'red')]


@pytest.mark.parametrize('args, message', [
    (['nowhere', 'x.png'], 'no exported classifier in nowhere'), (['{}', 'x.png'], 'no such image: x.png')])
def test_errors_of_the_command_are_a_line(exported, tmp_path, args, message):
    ran = run('-m', 'fsc_fastai.light', *(o.format(exported[1]) for o in args), cwd=tmp_path)
    assert ran.returncode == 1 and message in ran.stderr and ran.stderr.count('\n') == 1
