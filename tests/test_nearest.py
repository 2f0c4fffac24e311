"A name that nothing has, wherever a user writes one"
import pytest

from fsc_fastai.adapt.base import get_adaptation
from fsc_fastai.data.domains import prepare_domain
from fsc_fastai.data.glyphs import untar_glyphs
from fsc_fastai.data.named import domain_images
from fsc_fastai.encode.encoder import create_encoder
from fsc_fastai.methods.registry import get_method
from fsc_fastai.nearest import unknown


@pytest.mark.parametrize('ask, message', [
    (lambda: get_method('Relatoin'), "no method 'Relatoin': did you mean relation.*there are "),
    (lambda: get_adaptation('tsaa'), "no adaptation 'tsaa': did you mean tsa.*there are "),
    (lambda: create_encoder('resnet_10'), "no backbone 'resnet_10': did you mean .*`timm.list_models\\(\\)` lists them all"),
    (lambda: prepare_domain('Cup', '.'), "no domain 'Cup': did you mean cub"),
    (lambda: domain_images('food10'), "no domain 'food10': did you mean food101"),
    (lambda: untar_glyphs('grek'), "no glyph domain 'grek': did you mean greek"),
])
def test_the_nearest_names_are_offered(ask, message):
    with pytest.raises(ValueError, match=message): ask()


def test_without_a_near_name_all_are_listed():
    assert str(unknown('method', 'zzz', ['proto', 'relation'])) == "no method 'zzz': there are proto, relation"
