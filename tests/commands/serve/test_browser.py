"The web page in a headless Chromium, which `apt-get install chromium` provides"
import pytest

from fsc_fastai.commands.serve import create_app
from tests.commands.browser import CHROMIUM, Browser, served
from tests.deploy.toys import classifier, folder_of

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium: apt-get install chromium')


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path/'profile')
    yield browser
    browser.close()


@pytest.fixture
def address():
    with served(create_app(classifier())) as address: yield address


def test_drop_examples_drop_a_query_see_the_answer(browser, address, tmp_path):
    support, queries = folder_of(tmp_path/'support', 2, ['blue', 'red']), folder_of(tmp_path/'new', 1, ['red', 'blue'], first=50)
    browser.open(address)
    for name in ('blue', 'red'): browser.add_examples(name, (support/name).iterdir())
    browser.classify([queries/'red'/'0.png', queries/'blue'/'0.png'])
    assert browser.run("[...document.querySelectorAll('.answer h2')].map(o => o.textContent).join()") == 'red,blue'
    # every picture is drawn, and has its size
    assert browser.run("[...document.images].every(o => o.complete && o.naturalWidth > 0)")
    assert browser.run("document.images.length") == 8
    browser.screenshot(tmp_path/'page.png')
    assert (tmp_path/'page.png').stat().st_size > 5000
    assert {url.split('/')[2] for url in browser.asked if url.startswith('http')} == {address.removeprefix('http://')}


@pytest.mark.parametrize('width', [360, 800, 1600])
def test_fits_a_window(browser, address, tmp_path, width):
    support = folder_of(tmp_path/'support', 8, ['blue', 'red'])
    browser.resize(width)
    browser.open(address)
    for name in ('blue', 'red'): browser.add_examples(name, (support/name).iterdir())
    browser.classify([support/'red'/'0.png'])
    assert browser.run('document.documentElement.scrollWidth') <= width
