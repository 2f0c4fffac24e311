"Decoded images on the device that trains: the same batches, nothing but positions and labels on their way"
import pickle
from pathlib import Path

import pytest
import torch
from fastai.learner import load_learner
from torch.utils._python_dispatch import TorchDispatchMode

from fsc_fastai.data import device_cache
from fsc_fastai.data.cache import ImageCache
from fsc_fastai.data.device_cache import DeviceCache, named_device
from fsc_fastai.data.rank_loaders import EpisodicDistributedDL
from tests.learners import hue_learner

from .test_cache import image
from .trees import write_splits


def parts(b): return [o.as_subclass(torch.Tensor) for o in b]


def assert_equal(ours, expected):
    assert len(ours) == len(expected) > 0
    for a, b in zip(ours, expected, strict=True):
        assert type(a) is type(b) and getattr(a, 'classes', None) == getattr(b, 'classes', None)
        for x, y in zip(a, b, strict=True):
            assert type(x) is type(y) and x.device == y.device and getattr(x, 'classes', None) == getattr(y, 'classes', None)
            assert torch.equal(x, y)


@pytest.fixture
def augmented(make_dls):
    "Loaders with the default transforms, crops, colours and normalisation among them"
    def make(cache, **kwargs): return make_dls(item_tfms=None, batch_tfms=None, size=12, cache=cache, **kwargs)
    return make


@pytest.mark.parametrize('part', ['train', 'valid', 'images', 'image split'])
def test_batches_are_those_of_the_host(augmented, device, part):
    def batches(cache):
        torch.manual_seed(3)
        dls = augmented(cache, device=device)
        loader = {'train': lambda: dls.train, 'valid': lambda: dls.valid, 'images': lambda: dls.valid.images(bs=5),
                  'image split': lambda: dls.train.image_split(bs=5)[1]}[part]()
        found = [*loader, *loader]
        return found, loader.cache
    (ours, cache), (expected, _) = batches(device), batches(True)
    assert_equal(ours, expected)
    assert isinstance(cache, DeviceCache) and cache.store.device.type == device and len(cache) > 0
    assert f'images in {device}' in repr(cache)


def test_each_image_is_decoded_once(make_dls, device):
    dls, decoded = make_dls(cache=device, device=device), []
    load = dls.train._load_image
    dls.train._load_image = lambda i: decoded.append(i) or load(i)
    dls.build_cache(progress=False)
    n = len(dls.train.dataset)
    for _ in range(2): list(dls.train)
    assert sorted(decoded) == sorted([*range(n), 0]), 'and the first, to see its size'
    assert len(dls.train.cache) == n and len(dls.valid.cache) == len(dls.valid.dataset)


class Sent(TorchDispatchMode):
    "Collects what is copied from the host to a device"
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].device.type == 'cpu' != out.device.type: self.found.append(args[0])
        return out


def test_positions_and_labels_alone_are_sent(augmented):
    "On a device without values nothing can be asked for"
    dls = augmented('meta', device='meta')
    support, query, classes = dls.train.sampler.episode(2, 0)
    dls.train.episode(0)
    dls.train.cache.filled[:] = True
    with Sent() as sent: b = dls.train.episode(2)
    assert {o.device.type for o in b} == {'meta'} and b.classes == classes and b.support_x.shape == (6, 3, 12, 12)
    positions, labels = sent.found
    assert positions.tolist() == [*support, *query] and labels.shape == positions.shape and labels.dtype == torch.int64


def test_images_that_do_not_fit_stay_on_the_host(augmented, monkeypatch, device):
    room = 10_000
    monkeypatch.setattr(device_cache, 'room_on', lambda device: room)
    expected = list(augmented(True, device=device).valid)
    dls = augmented(device, device=device)
    told = rf'decoded images are not kept on {device}: they need .* GB, more than 50% of the .* cache=True silences'
    with pytest.warns(UserWarning, match=told): ours = list(dls.valid)
    assert_equal(ours, expected)
    cache = dls.valid.cache
    assert cache.store.device.type == 'cpu' and not cache.resident and cache.takes_workers and 'in memory' in repr(cache)
    size = dls.valid.cache.store.nbytes
    room = 2 * size
    assert DeviceCache(cache.n, torch.device(device)).prepare(dls.valid._load_image)
    room -= 1
    fits = DeviceCache(cache.n, torch.device(device))
    with pytest.warns(UserWarning, match='not kept'): fits.prepare(dls.valid._load_image)


def test_a_device_that_has_filled_up_meanwhile(monkeypatch):
    def full(*args, **kwargs):
        if kwargs.get('device') and args[0]: raise torch.OutOfMemoryError('full')
        return empty(*args, **kwargs)
    empty, cache = torch.empty, DeviceCache(6, torch.device('cpu'))
    monkeypatch.setattr(torch, 'empty', full)
    with pytest.warns(UserWarning, match='no room for them in one piece'): assert cache.prepare(image)
    assert cache.get([4, 1], image)[:, 0, 0, 0].tolist() == [4, 1] and not cache.resident


def test_which_choices_name_a_device(tmp_path, make_dls, monkeypatch):
    for choice in ('cpu', 'meta', torch.device('cpu'), 'cpu:0'): assert named_device(choice) == torch.device(choice)
    for choice in (None, True, 2, .5, tmp_path, str(tmp_path), 'images', '0', Path('cpu')): assert named_device(choice) is None
    monkeypatch.chdir(tmp_path)
    assert make_dls(cache=Path('cpu')).train.cache.folder == Path('cpu')
    assert make_dls(cache='cpu').train.cache.folder is None
    gone = 'mps' if not torch.backends.mps.is_available() else 'cuda'
    for choice in (gone, torch.device(gone)):
        with pytest.raises(ValueError, match=f"cache='{gone}': nothing can be computed on device '{gone}'.*cache=True keeps"):
            make_dls(cache=choice)


def test_workers_do_not_reach_the_device(augmented, device):
    "A loader does without them, in several processes too"
    expected = list(augmented(True, num_workers=0, device=device).valid)
    dl = augmented(device, num_workers=2, device=device).valid
    assert_equal(list(dl), expected)
    assert dl.fake_l.num_workers == 0 and dl.cache.resident
    rank = EpisodicDistributedDL(augmented(device, num_workers=2, device=device).valid, rank=0, world_size=2)
    assert_equal(list(rank), expected[::2])
    assert rank.fake_l.num_workers == 0


def test_batches_follow_their_loader(augmented):
    dls = augmented('cpu')
    dls.to('meta')
    assert dls.one_batch()[0].device.type == 'meta' and dls.train.cache.store.device.type == 'cpu'


def test_domains_have_one_of_their_own(augmented, tmp_path, device):
    dls = augmented(device, device=device).with_domains({'other': write_splits(tmp_path/'other')}, n_way=2)
    expected = augmented(True, device=device).with_domains({'other': tmp_path/'other'}, n_way=2)
    assert_equal(list(dls.domains['other']), list(expected.domains['other']))
    caches = [dl.cache for dl in (dls.train, dls.valid, dls.domains['other'])]
    assert len({id(c) for c in caches}) == 3 and all(isinstance(c, DeviceCache) for c in caches)
    assert isinstance(dls.test_images([image(0)]).cache, ImageCache | None)


def test_pickled_it_is_empty_and_elsewhere_on_the_host(monkeypatch):
    cache = DeviceCache(1000, torch.device('cpu'))
    cache.prepare(image)
    cache.get(range(1000), image)
    assert len(cache) == 1000 and len(stored := pickle.dumps(cache)) < 300
    other = pickle.loads(stored)
    assert len(other) == 0 and other.device == cache.device
    other.device = torch.device('mps')
    with pytest.warns(UserWarning, match="not kept on mps: nothing can be computed on device 'mps'"): other.prepare(image)
    assert other.get([7], image).eq(7).all()


def test_an_exported_learner_takes_no_images_along(tmp_path, monkeypatch):
    learn = hue_learner(tmp_path/'hues', 'proto', dls_kwargs=dict(cache='cpu', n_episodes=2))
    learn.fit(1)
    accuracy = learn.evaluate(n_episodes=3, n_query=2).accuracy.tolist()
    learn.export('with.pkl')
    hue_learner(tmp_path/'hues', 'proto', dls_kwargs=dict(cache=False, n_episodes=2)).export('without.pkl')
    assert (tmp_path/'with.pkl').stat().st_size < (tmp_path/'without.pkl').stat().st_size + 4000
    def gone(name): raise ValueError('gone')
    monkeypatch.setattr(device_cache, 'usable_device', gone)
    loaded = load_learner(tmp_path/'with.pkl')
    assert loaded.evaluate(tmp_path/'hues', n_episodes=3, n_query=2, n_way=3, n_shot=2).accuracy.tolist() == accuracy
    domain = loaded.dls.as_domains(tmp_path/'hues', n_way=3)['hues']
    assert type(domain.cache) is ImageCache, 'where the device is not'
