"Few and small glyphs to run tables on"
import pytest

from fsc_fastai.data.glyphs import untar_glyph_domains, untar_glyphs
from fsc_fastai.reproduce.table_data import Data


@pytest.fixture(scope='session')
def glyphs(tmp_path_factory) -> Data:
    "Domains that train and test within seconds"
    small = dict(n_images=10, size=28, path=tmp_path_factory.mktemp('glyphs'), progress=False)
    return Data('glyphs', 'latin', untar_glyphs(n_classes=28, **small),
                untar_glyph_domains(['greek', 'braille'], n_classes=6, **small), do_flip=False)
