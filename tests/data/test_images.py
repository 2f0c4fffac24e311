"Images of every kind, and broken ones"
import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from fsc_fastai.data.images import DatasetImage, broken_images, checked_images, open_image
from fsc_fastai.pixels import PixelError

GRADIENT = np.linspace(0, 255, 64).reshape(8, 8)


def saved(tmp_path, im, name='im.png', **kwargs):
    im.save(tmp_path/name, **kwargs)
    return tmp_path/name


def pixels(source) -> np.ndarray:
    im = open_image(source)
    assert im.mode == 'RGB'
    return np.asarray(im)


@pytest.mark.parametrize('mode, tolerance', [('L', 1), ('P', 40), ('CMYK', 3), ('LA', 1), ('RGBA', 1), ('RGB', 1)])
def test_every_mode_becomes_rgb(tmp_path, mode, tolerance):
    im = Image.fromarray(GRADIENT.astype(np.uint8)).convert('RGBA' if mode == 'LA' else 'RGB').convert(mode)
    got = pixels(saved(tmp_path, im, 'im.tif' if mode == 'CMYK' else 'im.png'))
    assert got.shape == (8, 8, 3) and np.abs(got - GRADIENT[..., None]).max() <= tolerance


def test_black_and_white(tmp_path):
    im = Image.fromarray(np.eye(8) > 0)
    assert im.mode == '1' and (pixels(saved(tmp_path, im)) == 255 * np.eye(8)[..., None]).all()


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    deep = saved(tmp_path, Image.fromarray((GRADIENT * 257).astype(np.uint16)))
    assert np.abs(pixels(deep)[..., 0] - GRADIENT).max() < 1.5
    assert np.abs(pixels((GRADIENT * 257).astype(np.uint16))[..., 0] - GRADIENT).max() < 1.5


@pytest.mark.parametrize('name', ['deep.png', 'deep.tif', 'array', 'pil'])
def test_sixteen_bits_have_one_scale_whatever_the_image_holds(tmp_path, name):
    def source(a):
        if name == 'array': return a
        return Image.fromarray(a) if name == 'pil' else saved(tmp_path, Image.fromarray(a), name)
    for top in (4096, 20000, 65535):
        a = np.linspace(0, top, 64).reshape(8, 8).astype(np.uint16)
        assert np.abs(pixels(source(a))[..., 0] - a / 257).max() <= .51
    for top in (250, 300, 4095):
        with pytest.raises(PixelError, match=f'uint16 samples from 0 to {top}, where 16 bits .* white=4095 for 12 bits'):
            open_image(source(np.array([[0, top]], np.uint16)))
    assert (pixels(source(np.zeros((2, 2), np.uint16))) == 0).all()
    assert (np.asarray(open_image(source(np.array([[0, 4095]], np.uint16)), white=4095))[0, :, 0] == [0, 255]).all()


def test_the_depth_that_a_tiff_says(tmp_path):
    a = np.array([[0, 4095, 2048, 16]], np.uint16)
    packed = np.packbits(((a[0][:, None] >> np.arange(11, -1, -1)) & 1).astype(np.uint8)).tobytes()
    entries = [(256, 3, 4), (257, 3, 1), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1), (278, 3, 1),
               (279, 4, len(packed))]
    directory = struct.pack('<H', len(entries)) + b''.join(struct.pack('<HHII', tag, kind, 1, v) for tag, kind, v in entries)
    file = tmp_path/'twelve.tif'
    file.write_bytes(struct.pack('<2sHI', b'II', 42, 8 + len(packed)) + packed + directory + bytes(4))
    assert (pixels(file)[0, :, 0] == [0, 255, 128, 1]).all()


def test_portable_maps_of_sixteen_bits(tmp_path):
    (tmp_path/'im.pgm').write_bytes(b'P5 2 1 65535\n' + np.array([0, 65535], '>u2').tobytes())
    (tmp_path/'ten.pgm').write_bytes(b'P5 2 1 1023\n' + np.array([0, 1023], '>u2').tobytes())
    for name in ('im.pgm', 'ten.pgm'): assert (pixels(tmp_path/name)[0, :, 0] == [0, 255]).all()


def test_floats_and_wide_integers(tmp_path):
    share = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    for source in (share, share.astype(np.float64), share.astype(np.float16), torch.from_numpy(share).bfloat16(),
                   saved(tmp_path, Image.fromarray(share), 'f.tif')):
        assert np.abs(pixels(source)[..., 0] - 255 * share).max() <= 1
    assert (pixels(share > .5)[..., 0] == 255 * (share > .5)).all()
    assert (pixels(torch.ones(1, 2, 2, dtype=torch.bool)) == 255).all()
    for dtype in (np.int16, np.int32, np.uint32, np.int64):
        assert (pixels(np.array([[0, 255]], dtype))[0, :, 0] == [0, 255]).all()
    assert (np.asarray(open_image(share * 255, white=255))[..., 0] == np.rint(share * 255)).all()
    assert pixels(share * 1.001).max() == 255, 'what rounds to white'


UNKNOWN = np.array([[0., 1.]])


@pytest.mark.parametrize('samples, found', [
    (UNKNOWN * 255, 'float64 samples from 0 to 255, but 0 is black and 1 is white'),
    (UNKNOWN * 4 - 2, 'float64 samples from -2 to 2'),
    (UNKNOWN * np.nan, 'float64 samples from nan to nan'), (UNKNOWN + np.inf, 'float64 samples from inf to inf'),
    ((UNKNOWN * 300).astype(np.int32), 'int32 samples from 0 to 300, but 0 is black and 255 is white'),
    ((UNKNOWN * -1).astype(np.int64), 'int64 samples from -1 to 0'),
    ((UNKNOWN * 70000).astype(np.uint32), 'uint32 samples from 0 to 70000'),
    (UNKNOWN.astype(complex), 'samples of type complex128'),
])
def test_samples_whose_range_cannot_be_known_are_named(samples, found):
    with pytest.raises(PixelError, match=f'ndarray: {found}'): open_image(samples)


def test_a_float_file_that_counts_otherwise_is_named_when_it_is_opened_and_when_it_is_checked(tmp_path):
    file = saved(tmp_path, Image.fromarray(np.float32(UNKNOWN * 255)), 'f.tif')
    with pytest.raises(PixelError, match='f.tif: float32 samples from 0 to 255.*white=255'): open_image(file)
    with pytest.raises(OSError, match='f.tif: PixelError: float32 samples from 0 to 255'): checked_images([file])
    assert checked_images([file], white=255) == [True]


@pytest.mark.parametrize('x', [np.zeros((3, 9, 9), np.uint8), torch.zeros(9, 9, 3), np.zeros(3, np.uint8), np.zeros((1, 9, 9, 3)),
                               np.zeros((0, 4)), torch.zeros(3, 0, 4), np.zeros((4, 4, 5))])
def test_channels_in_the_wrong_place_are_named(x):
    with pytest.raises(PixelError, match=r'shape \(.*\): arrays are .*, tensors .*transpose'): open_image(x)


def test_alpha_of_arrays_is_shown_on_white():
    assert (pixels(np.zeros((2, 2, 2), np.uint8)) == 255).all() and (pixels(torch.zeros(4, 2, 2)) == 255).all()


def test_a_normalised_dataset_is_named():
    with pytest.raises(PixelError, match='image 1 of list: float32 samples from -1 to -1.*undo a normalisation'):
        open_image(DatasetImage([(torch.zeros(3, 2, 2), 0), (-torch.ones(3, 2, 2), 1)], 1))


def test_too_many_pixels_are_called_so(tmp_path, monkeypatch):
    file = saved(tmp_path, Image.new('L', (40, 40)))
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 300)
    with pytest.raises(OSError, match=r'1600 pixels.*exceeds limit of 600.*raise PIL.Image.MAX_IMAGE_PIXELS'): open_image(file)
    with pytest.raises(OSError, match='im.png: DecompressionBombError: .*1600 pixels.*MAX_IMAGE_PIXELS'): checked_images([file])


def test_transparency_is_shown_on_white(tmp_path):
    im = Image.new('RGBA', (4, 4), (0, 0, 0, 0))
    im.putpixel((0, 0), (0, 0, 0, 255))
    assert pixels(saved(tmp_path, im))[..., 0].sum() == 15*255
    palette = Image.new('P', (4, 4), 0)
    palette.putpixel((0, 0), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert pixels(saved(tmp_path, palette, 'p.png', transparency=0))[..., 0].sum() == 15*255 + 9


ARROW = np.arange(8, dtype=np.uint8).reshape(2, 4) * 30


def turned(orientation: int, **kwargs) -> bytes:
    "A picture of `ARROW` whose EXIF orientation says how to turn it"
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x112] = orientation
    Image.fromarray(ARROW).save(buffer, exif=exif, **({'format': 'PNG'} | kwargs))
    return buffer.getvalue()


@pytest.mark.parametrize('orientation, upright', [
    (1, ARROW), (2, ARROW[:, ::-1]), (3, ARROW[::-1, ::-1]), (4, ARROW[::-1]),
    (5, ARROW.T), (6, np.rot90(ARROW, -1)), (7, np.rot90(ARROW, 2).T), (8, np.rot90(ARROW))])
@pytest.mark.parametrize('kwargs', [dict(format='PNG'), dict(format='TIFF'), dict(format='WEBP', lossless=True)])
def test_images_are_turned_as_exif_says(orientation, upright, kwargs):
    assert (pixels(turned(orientation, **kwargs))[..., 0] == upright).all()
    opened = Image.open(io.BytesIO(turned(orientation, **kwargs)))
    for _ in range(2): assert (pixels(opened)[..., 0] == upright).all(), 'never twice'


def test_orientation_can_be_ignored():
    assert (np.asarray(open_image(turned(6), orient=False))[..., 0] == ARROW).all()


def test_deep_images_are_turned_too(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 3
    deep = saved(tmp_path, Image.fromarray(ARROW.astype(np.uint16) * 257), exif=exif)
    assert (pixels(deep)[..., 0] == ARROW[::-1, ::-1]).all()


@pytest.mark.filterwarnings('ignore')
def test_broken_exif_is_no_broken_image():
    whole = turned(6, format='JPEG')
    at, rng = whole.index(b'Exif') + 6, np.random.default_rng(0)
    for _ in range(200):
        broken = bytearray(whole)
        for i in rng.integers(at, at + 26, 3): broken[i] = rng.integers(256)
        assert open_image(bytes(broken)).mode == 'RGB'


def test_arrays_tensors_bytes_and_pil_images():
    a = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    buffer = io.BytesIO()
    Image.fromarray(a).save(buffer, 'PNG')
    t = torch.from_numpy(a).permute(2, 0, 1)
    for source in (a, t, t.float() / 255, Image.fromarray(a), buffer.getvalue()): assert (pixels(source) == a).all()
    assert pixels(torch.ones(1, 4, 4)).shape == (4, 4, 3) and (pixels(torch.ones(4, 4)) == 255).all()


def test_broken_and_missing_files_are_named(tmp_path):
    jpg = saved(tmp_path, Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)), 'cut.jpg')
    jpg.write_bytes(jpg.read_bytes()[:-500])
    (tmp_path/'text.jpg').write_text('no image')
    for name in ('cut.jpg', 'text.jpg'):
        with pytest.raises(OSError, match=f'{name} cannot be read as an image'): open_image(tmp_path/name)
    with pytest.raises(FileNotFoundError, match='image not found: .*none.jpg'): open_image(tmp_path/'none.jpg')
    with pytest.raises(OSError, match='bytes cannot be read'): open_image(b'nothing')


def test_check_finds_truncated_files_of_every_format(tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    whole = [saved(tmp_path, noise, f'whole.{ext}') for ext in ('jpg', 'png', 'bmp', 'gif')]
    cut = []
    for f in whole:
        cut.append(f.with_stem('cut'))
        cut[-1].write_bytes(f.read_bytes()[:len(f.read_bytes()) * 2//3])
    assert set(broken_images(whole + cut)) == set(cut)


def test_what_to_do_with_broken_files(tmp_path):
    good, bad = saved(tmp_path, Image.new('RGB', (4, 4))), tmp_path/'bad.png'
    bad.write_bytes(b'x')
    with pytest.raises(OSError, match=r"1 of 2 images cannot be used:\n.*bad.png.*\n.*verify='skip'"):
        checked_images([good, bad])
    with pytest.warns(UserWarning, match=r'left out: 1 of 2[^|]*bad\.png'):
        assert checked_images([good, bad], 'skip') == [True, False]
    assert checked_images([good, bad], False) == [True, True]
    with pytest.raises(ValueError, match="verify='no'"): checked_images([good], 'no')
