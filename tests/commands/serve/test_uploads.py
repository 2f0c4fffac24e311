"Files that are small and images that are large, and the process that decodes them"
import io
import json
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from starlette.datastructures import UploadFile

from fsc_fastai.commands.serve.decode import decode
from fsc_fastai.commands.serve.limits import Limits, Refused
from fsc_fastai.commands.serve.uploads import DECODE, images_of
from fsc_fastai.data.images import open_image
from tests.attacks.images import encoded, flat_png, many_scans
from tests.commands.serve.test_page import client_of, upload
from tests.deploy.toys import classifier, examples, picture

LIMITS = Limits()
rng = np.random.default_rng(0)


def sent(*files): return [UploadFile(io.BytesIO(f), size=len(f)) for f in files]


def read(*files, limits=LIMITS, target=32): return list(images_of(sent(*files), limits, target))


noise = Image.fromarray(rng.integers(0, 256, (50, 60, 3), dtype=np.uint8))
deep = Image.fromarray(rng.integers(0, 65536, (50, 60), dtype=np.uint16))


@pytest.mark.parametrize('file', [
    encoded(noise, 'PNG'), encoded(noise, 'JPEG'), encoded(noise.convert('CMYK'), 'JPEG'), encoded(noise, 'WEBP', lossless=True),
    encoded(noise.convert('RGBA'), 'PNG'), encoded(noise.convert('LA'), 'PNG'), encoded(noise.convert('L'), 'BMP'),
    encoded(noise.convert('P'), 'GIF'), encoded(noise.convert('P'), 'PNG', transparency=3), encoded(noise.convert('1'), 'PNG'),
    encoded(deep, 'PNG'), encoded(deep, 'TIFF'), encoded(noise, 'TIFF', compression='tiff_lzw'),
    encoded(noise, 'JPEG', exif=b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0')])
def test_pixels_are_those_of_the_file(file):
    im, = read(file)
    assert np.array_equal(np.asarray(open_image(im)), np.asarray(open_image(file)))


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'L', 'I;16', 'CMYK'])
def test_large_images_come_smaller_and_alike(mode):
    im = deep if mode == 'I;16' else noise.convert(mode)
    large = im.resize((600, 500), Image.Resampling.NEAREST)
    found, = read(encoded(large, 'TIFF'), target=25)
    assert found.size == (60, 50) and found.mode == mode
    assert np.abs(np.asarray(found, float) - np.asarray(im, float)).max() <= 1


def test_large_jpegs_are_decoded_at_a_smaller_scale():
    photo = encoded(Image.new('RGB', (8000, 6000), 'red'), 'JPEG')
    im, = read(photo)
    assert im.size == (91, 69), 'an eighth by the decoder, an eleventh by reduction: at least twice what is needed'
    assert np.abs(np.asarray(im).mean((0, 1)) - [254, 0, 0]).max() < 2
    with pytest.raises(Refused, match='has more than 16,000,000 pixels'): read(encoded(Image.new('RGB', (8000, 6000)), 'PNG'))


def test_avif_and_heic():
    found, = read(encoded(noise, 'AVIF'))
    assert found.size == noise.size
    with pytest.raises(Refused, match='AVIF.*files are accepted.$') as none: read(encoded(noise, 'AVIF')[:300])
    with pytest.raises(Refused, match='HEIC files have to be saved as JPEG') as heic: read(b'\0\0\0\x18ftypheic' + bytes(100))
    assert none.value.status == heic.value.status == 415


@pytest.mark.parametrize('file, message', [
    (flat_png(1, 5_000_000), 'image 1 is larger than 16,384 pixels a side'),
    (flat_png(50_000_000, 1), 'larger than 16,384 pixels a side'),
    (flat_png(16_000, 16_000), 'has more than 16,000,000 pixels'),
    (encoded(Image.new('F', (9000, 9000)), 'TIFF', compression='tiff_deflate'), 'has more than 16,000,000 pixels'),
    (many_scans(4000, 3000), 'takes too much memory or time')], ids=['tall', 'wide', 'large', 'floats', 'scans'])
def test_small_files_of_large_images_cost_little(file, message):
    with pytest.raises(Refused, match=message) as refused: read(file, limits=Limits(seconds=.2))
    assert len(file) < 10 * 2**20 and refused.value.status == 413


def test_a_decoder_has_no_more_memory_than_it_is_given():
    settings = dict(formats=['BMP'], side=10_000, pixels=10**8, target=32, memory_mb=150, seconds=5)
    file = encoded(Image.new('RGB', (6000, 6000)), 'BMP')
    run = subprocess.run([sys.executable, DECODE, json.dumps(settings)], input=file, capture_output=True)
    assert run.returncode or json.loads(run.stdout.split(b'\n')[0]).keys() & {'too_large', 'unreadable'}


def test_the_next_image_is_decoded_when_the_one_before_is_used():
    order = []
    class Told(io.BytesIO):
        def read(self, *args):
            order.append('read')
            return super().read(*args)
    files = [UploadFile(Told(encoded(noise, 'BMP'))) for _ in range(2)]
    for _ in images_of(files, LIMITS, 32): order.append('used')
    assert order == ['read', 'used'] * 2


@pytest.mark.parametrize('orient, size', [(True, (20, 30)), (False, (30, 20))])
def test_orientation_is_that_of_the_classifier(orient, size):
    exif = Image.Exif()
    exif[0x112] = 6
    found, = images_of(sent(encoded(Image.new('RGB', (30, 20)), 'PNG', exif=exif)), LIMITS, 32, orient)
    assert found.size == size


def test_orientations_that_make_no_sense_are_none():
    for tail in (b'II*\0\xff\xff\xff\x7f', b'junk', struct.pack('<4sIH', b'II*\0', 8, 65535)):
        assert decode(encoded(noise, 'PNG', exif=b'Exif\0\0' + tail), ['PNG'], 1000, 10**6, 32).size == noise.size


def test_uploads_stay_in_memory(monkeypatch):
    def roll(self): raise AssertionError('written to the disk')
    monkeypatch.setattr('tempfile.SpooledTemporaryFile.rollover', roll)
    client = client_of(classifier().fit(*examples(colours=['blue', 'red'])))
    large = encoded(picture('red', 1).resize((1200, 1200)), 'BMP')
    assert len(large) > 4e6 and '<h2>red</h2>' in client.post('/classify', files=upload(large, large)).text


def test_bodies_that_are_too_large_are_cut_off_chunked_or_not():
    client = client_of(classifier(), body_mb=1)
    assert client.post('/add', data=dict(name='x'), files=upload(bytes(2_000_000))).status_code == 413
    read = []

    def chunks():
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
        for _ in range(40):
            read.append(1)
            yield zlib.compress(bytes(100), 0) * 1000
    answer = client.post('/add', content=chunks(), headers={'content-type': 'multipart/form-data; boundary=b'})
    assert answer.status_code == 413 and 'more than 1 MB' in answer.text
