"Conversion to floats is fastai's, bit for bit, wherever the memory comes from"
import numpy as np
import pytest
import torch
from fastai.data.transforms import IntToFloatTensor, Normalize
from fastai.torch_core import TensorImage
from fastai.vision.core import imagenet_stats

from fsc_fastai.data.augment import BytesToFloat, InplaceNormalize
from fsc_fastai.data.pages import empty_batch


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


def test_a_batch_in_large_pages_is_an_ordinary_tensor():
    batch = empty_batch(torch.Size([3, 2**20]), np.float32)
    assert batch.shape == (3, 2**20) and batch.dtype is torch.float32 and batch.fill_(2.).sum() == 6 * 2**20
