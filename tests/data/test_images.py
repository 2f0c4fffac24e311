"Images of every kind, and broken ones"
import io

import numpy as np
import pytest
import torch
from PIL import Image

from fsc_fastai.data.images import broken_images, checked_images, open_image

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


def test_transparency_is_shown_on_white(tmp_path):
    im = Image.new('RGBA', (4, 4), (0, 0, 0, 0))
    im.putpixel((0, 0), (0, 0, 0, 255))
    assert pixels(saved(tmp_path, im))[..., 0].sum() == 15*255
    palette = Image.new('P', (4, 4), 0)
    palette.putpixel((0, 0), 1)
    palette.putpalette([0, 0, 0, 9, 9, 9])
    assert pixels(saved(tmp_path, palette, 'p.png', transparency=0))[..., 0].sum() == 15*255 + 9


def test_exif_orientation_is_left_alone(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6
    assert open_image(saved(tmp_path, Image.new('RGB', (8, 4)), 'im.jpg', exif=exif)).size == (8, 4)


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
        with pytest.raises(OSError, match=f'{name} can not be read as an image'): open_image(tmp_path/name)
    with pytest.raises(FileNotFoundError, match='image not found: .*none.jpg'): open_image(tmp_path/'none.jpg')
    with pytest.raises(OSError, match='bytes can not be read'): open_image(b'nothing')


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
    with pytest.raises(OSError, match=r"1 of 2 images can not be decoded:\n.*bad.png.*\n.*verify='skip'"):
        checked_images([good, bad])
    with pytest.warns(UserWarning, match=r'left out: 1 of 2[^|]*bad\.png'):
        assert checked_images([good, bad], 'skip') == [True, False]
    assert checked_images([good, bad], False) == [True, True]
    with pytest.raises(ValueError, match="verify='no'"): checked_images([good], 'no')
