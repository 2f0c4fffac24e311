"Data sets by name: the libraries' own classes on small trees in their layouts; nothing is fetched"
import json
import re
from pathlib import Path

import pytest
import torchvision
from PIL import Image

from fsc_fastai.data import fwt, served
from fsc_fastai.data.domains import DOMAINS
from fsc_fastai.data.named import domain, domain_images, domain_names
from fsc_fastai.data.served import FASTAI, TORCHVISION
from fsc_fastai.data.splitter import ClassSplitter
from tests.data.trees import write_tree
from tests.learners import hue_loaders

SMALL = dict(n_way=2, n_shot=1, n_query=2, size=16, verify=False, num_workers=0, device='cpu')


def save(path, colour=(0, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', (20, 20), colour).save(path)


def dtd(root):
    for c, name in enumerate(('banded', 'dotted')):
        for k in range(6): save(root/'dtd'/'dtd'/'images'/name/f'{name}_{k}.jpg', (c, k, 0))
    labels = root/'dtd'/'dtd'/'labels'
    labels.mkdir()
    for p, part in enumerate(('train1', 'val1', 'test1')):
        (labels/f'{part}.txt').write_text(''.join(f'{n}/{n}_{k}.jpg\n' for n in ('banded', 'dotted') for k in (2*p, 2*p + 1)))


def food101(root):
    for part, ks in (('train', range(3)), ('test', range(3, 5))):
        names = {c: [f'{c}/{k}' for k in ks] for c in ('pizza', 'ramen')}
        for c, files in names.items():
            for f in files: save(root/'food-101'/'images'/f'{f}.jpg', (len(c), 0, 0))
        (root/'food-101'/'meta').mkdir(exist_ok=True)
        (root/'food-101'/'meta'/f'{part}.json').write_text(json.dumps(names))


def omniglot(root):
    for part, alphabets in (('background', ('Greek', 'Latin')), ('evaluation', ('Tengwar',))):
        for a in alphabets:
            for c in ('character01', 'character02'):
                for k in range(3): save(root/'omniglot-py'/f'images_{part}'/a/c/f'{k}.png')


TREES = {
    'dtd': (dtd, {'banded': 6, 'dotted': 6}), 'food101': (food101, {'pizza': 5, 'ramen': 5}),
    'omniglot': (omniglot, {f'{a}/character0{c}': 3 for a in ('Greek', 'Latin', 'Tengwar') for c in (1, 2)})}


@pytest.mark.parametrize('name', list(TREES))
def test_all_parts_of_a_data_set_with_the_names_of_its_classes(tmp_path, name, monkeypatch):
    build, classes = TREES[name]
    build(tmp_path)
    monkeypatch.setattr(torchvision.datasets.Omniglot, '_check_integrity', lambda self: True)  # of the archive
    monkeypatch.setattr(Image.Image, 'load', lambda *args: pytest.fail('opened an image for its label'))
    images = domain_images(name.upper(), tmp_path, download=False)
    assert {c: images.labels.count(c) for c in images.labels} == classes and not images.sets


def test_a_domain_is_episodes_of_all_its_classes(tmp_path):
    dtd(tmp_path)
    dls = domain('dtd', tmp_path, download=False, **SMALL)
    assert list(dls.vocab) == ['banded', 'dotted'] and len(dls.train.items) == len(dls.valid.items) == 12
    xs, ys, xq, yq = dls.valid.one_batch()
    assert xs.shape == (2, 3, 16, 16) and xq.shape == (4, 3, 16, 16)
    tested = hue_loaders(tmp_path/'hues').as_domains({'loaders': dls, 'images': domain_images('dtd', tmp_path, download=False)},
                                                  n_way=2)
    assert [len(dl.items) for dl in tested.values()] == [12, 12]


def test_a_splitter_keeps_classes_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(served, 'untar_data', lambda url: write_tree(tmp_path/'caltech', 6, 4))
    dls = domain('caltech_101', splitter=ClassSplitter(0.4, seed=0), **SMALL)
    assert not set(dls.train.labels) & set(dls.valid.labels) and len(dls.train.items) + len(dls.valid.items) == 24


class Fake:
    "A data set of torchvision that says how it was called"
    calls: list = []
    classes = ['bed', 'beaver', 'apple', 'aquarium_fish']

    def __init__(self, root, download=False, **part):
        self.calls.append(part | dict(download=download))
        self.targets = [0, 1, 2, 3] * 4

    def __len__(self): return len(self.targets)
    def __getitem__(self, i): return Image.new('RGB', (20, 20), (i, 0, 0)), self.targets[i]


def test_cifar_fs_has_the_classes_of_its_split(tmp_path, monkeypatch):
    monkeypatch.setattr(torchvision.datasets, 'CIFAR100', Fake)
    monkeypatch.setattr(Fake, 'calls', [])
    images = domain_images('CIFAR-FS', tmp_path)
    assert Fake.calls == [dict(train=True, download=True), dict(train=False, download=True)]
    of = dict(zip(images.labels, images.sets, strict=True))
    assert of == dict(bed='test', beaver='valid', apple='train', aquarium_fish='train') and len(images) == 32
    classes = [c for s in served.CIFAR_FS.values() for c in s.split()]
    assert len(set(classes)) == 16 + 20


@pytest.mark.parametrize('name', list(TORCHVISION))
def test_every_part_is_one_that_the_class_takes(name, tmp_path, monkeypatch):
    class Stop(Exception): pass
    def stop(*args, **kwargs): raise Stop
    for module in ('urllib.request.urlopen', 'torchvision.datasets.utils._urlretrieve'): monkeypatch.setattr(module, stop)
    for part in TORCHVISION[name]:
        with pytest.raises((Stop, RuntimeError, FileNotFoundError)) as error:
            getattr(torchvision.datasets, name)(tmp_path, download=False, **part)
        assert not isinstance(error.value, TypeError)


@pytest.mark.parametrize('name', [n.lower() for n in FASTAI])
def test_fastais_archives_by_the_names_of_its_urls(name, tmp_path, monkeypatch):
    asked = []
    for part in ('train', 'val'):
        for c in ('a', 'b'): save(tmp_path/part/c/('Great_Dane_1.jpg' if c == 'a' else 'Beagle_2.jpg'))
    monkeypatch.setattr(served, 'untar_data', lambda url: asked.append(url) or tmp_path)
    images = domain_images(f'fastai/{name}')
    assert asked == [getattr(served.URLs, name.upper())] and len(images) == 4
    assert set(images.labels) == ({'Great_Dane', 'Beagle'} if name == 'pets' else {'a', 'b'})


def test_our_domains_have_these_names_too(tmp_path, monkeypatch):
    for c in range(4):
        for k in range(3): save(tmp_path/'images'/f'00{c}.Bird'/f'{k}.jpg')
    for name in ('cub', 'CUB_200_2011'):
        images = domain_images(name, tmp_path, strict=False)
        assert sorted(set(zip(images.labels, images.sets, strict=True))) == [
            ('000.Bird', 'train'), ('001.Bird', 'valid'), ('002.Bird', 'train'), ('003.Bird', 'test')]
    monkeypatch.setattr(fwt, 'untar_data', lambda url: tmp_path)
    assert len(domain_images('cub', tmp_path/'nothing', strict=False)) == 12  # fetched where it is not there
    for c in 'ab': save(tmp_path/'2750'/c/'0.jpg')
    assert domain_images('eurosat', tmp_path, strict=False).sets == []
    with pytest.raises(ValueError, match='27000 wanted'): domain_images('eurosat', tmp_path)


def test_a_host_that_is_gone(tmp_path, monkeypatch):
    def gone(*args, **kwargs): raise OSError('404')
    for name, said in (('Food101', "domain.'fastai/food'."), ('DTD', 'docs/domains')):
        monkeypatch.setattr(torchvision.datasets, name, gone)
        with pytest.raises(RuntimeError, match=f'{name} cannot be had .OSError: 404.*{said}'): domain(name, tmp_path)
    monkeypatch.setattr(served, 'untar_data', gone)
    with pytest.raises(RuntimeError, match='cannot be had'): domain('pets')
    with pytest.raises(RuntimeError, match='no images in'): domain('fastai/food', tmp_path)


def test_every_name_has_its_line_in_the_documentation():
    page = (Path(__file__).parents[2]/'docs'/'domains.md').read_text(encoding='utf-8')
    rows = {name for line in page.splitlines() if line.startswith('| `') for name in re.findall(r'`([^`]+)`', line.split('|')[1])}
    assert rows == set(domain_names()) and set(DOMAINS) <= rows
    for line in page.splitlines():
        assert not line.startswith('| `') or all(cell.strip() for cell in line.strip('|').split('|')), line
