"The web page in a headless Chromium, which `apt-get install chromium` provides"
import pytest

from fsc_fastai.commands.serve import create_app
from tests.commands.browser import CHROMIUM, add_examples, classify, new_page, served
from tests.deploy.toys import classifier, folder_of

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium: apt-get install chromium')


@pytest.fixture
def page():
    with new_page() as page: yield page


@pytest.fixture
def address():
    with served(create_app(classifier())) as address: yield address


def test_drop_examples_drop_a_query_see_the_answer(page, address, tmp_path):
    support, queries = folder_of(tmp_path/'support', 2, ['blue', 'red']), folder_of(tmp_path/'new', 1, ['red', 'blue'], first=50)
    asked = []
    page.on('request', lambda request: asked.append(request.url))
    page.goto(address)
    for name in ('blue', 'red'): add_examples(page, name, (support/name).iterdir())
    classify(page, [queries/'red'/'0.png', queries/'blue'/'0.png'])
    assert page.locator('.answer h2').all_text_contents() == ['red', 'blue']
    drawn = page.evaluate('[...document.images].map(o => o.complete && o.naturalWidth > 0)')
    assert drawn == [True] * 8, 'every picture, with its size'
    assert {url.split('/')[2] for url in asked if url.startswith('http')} == {address.removeprefix('http://')}


@pytest.mark.parametrize('width', [360, 800, 1600])
def test_fits_a_window(page, address, tmp_path, width):
    support = folder_of(tmp_path/'support', 8, ['blue', 'red'])
    page.set_viewport_size(dict(width=width, height=800))
    page.goto(address)
    for name in ('blue', 'red'): add_examples(page, name, (support/name).iterdir())
    classify(page, [support/'red'/'0.png'])
    assert page.evaluate('document.documentElement.scrollWidth') <= width
