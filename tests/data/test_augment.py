"The fast transforms give what fastai's own give"
import pytest
import torch
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorImage
from fastai.vision.augment import AffineCoordTfm, aug_transforms
from fastai.vision.core import imagenet_stats

from fsc_fastai.data.augment import BytesToFloat, InplaceNormalize, RandomView, episode_transforms


@pytest.mark.parametrize('shape', [(5, 3, 12, 12), (4, 3, 300, 310), (0, 3, 8, 8)], ids=str)
def test_bytes_become_fastai_s_floats(shape):
    x = TensorImage(torch.randint(0, 256, shape, dtype=torch.uint8))
    before = x.clone()
    for view in (x, x[..., 2:7, 1:5]):  # as a crop leaves it
        ours, theirs = BytesToFloat()(view), IntToFloatTensor()(view)
        assert type(ours) is TensorImage and ours.dtype is torch.float32 and torch.equal(ours, theirs)
        assert torch.equal(BytesToFloat().decode(ours), IntToFloatTensor().decode(theirs))
    assert torch.equal(x, before)
    normalised = InplaceNormalize.from_stats(*imagenet_stats, cuda=False)(ours.clone())
    torch.testing.assert_close(normalised, Normalize.from_stats(*imagenet_stats, cuda=False)(ours), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(('size', 'out'), [(20, 18), (20, None), (40, 19), (20, (9, 30))], ids=str)
def test_views_are_fastai_s_pixel_by_pixel(size, out):
    theirs = aug_transforms(size=out, max_rotate=0., max_warp=0., max_zoom=1.5, p_affine=1.)[0]
    ours, x = RandomView(theirs.aff_fs, size=out, align_corners=True), TensorImage(torch.rand(5, 3, size, size))
    views = []
    for tfm in (ours, AffineCoordTfm(theirs.aff_fs, size=out, align_corners=True)):
        torch.manual_seed(1)
        views.append(tfm(x, split_idx=0))
    assert type(views[0]) is TensorImage and torch.equal(*views) and not torch.equal(views[0], views[0].flip(0))


def test_a_view_is_taken_without_a_value_on_the_host(monkeypatch):
    def item(self): raise AssertionError('a GPU would be waited for')
    monkeypatch.setattr(torch.Tensor, 'item', item)
    item_tfm, (crop, *tfms) = episode_transforms(12)
    x = TensorImage(torch.rand(5, 3, 13, 13))
    for tfm in tfms: x = tfm(x, split_idx=0)
    assert x.shape == (5, 3, 12, 12)


def test_validation_draws_no_numbers():
    x, state = TensorImage(torch.rand(5, 3, 13, 13)), torch.get_rng_state()
    for tfm in episode_transforms(12)[1]: x = tfm(x, split_idx=1)
    assert x.shape == (5, 3, 12, 12) and torch.equal(torch.get_rng_state(), state)


def test_normalisation_follows_the_images_to_their_device():
    normalise = InplaceNormalize.from_stats(*imagenet_stats, cuda=False)
    assert normalise(TensorImage(torch.empty(2, 3, 4, 4, device='meta'))).device.type == 'meta'
    x = TensorImage(torch.rand(2, 3, 4, 4))
    normalise.mean, normalise.std = (torch.tensor(o).view(1, 3, 1, 1) for o in imagenet_stats)
    torch.testing.assert_close(normalise.decode(normalise(x.clone())), x)
