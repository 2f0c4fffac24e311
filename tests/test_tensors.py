"Tensors of fastai go in, plain ones come out"
import torch
from fastai.torch_core import TensorImage

from tests.methods.toys import feature_model


def test_encode_takes_off_the_type_of_the_images():
    "A loss made by hand from a TensorImage could not even be printed with a format"
    features = feature_model('proto').encode(TensorImage(torch.rand(2, 6, 5, 5)))
    assert type(features) is torch.Tensor
