"Episodes and images as batches"
import pickle
import warnings

import pytest
import torch
from fastai.data.load import SkipItemException
from fastai.data.transforms import Normalize
from fastai.vision.augment import RandomResizedCrop, Resize, aug_transforms
from fastai.vision.core import PILImage
from PIL import Image

from fsc_fastai.data.augment import episode_transforms
from fsc_fastai.data.episode_loader import EpisodicDL
from fsc_fastai.data.loader import ImageDL
from tests.gpu import GPU, ON_CUDA, no_waiting

from .trees import identity


def episodes(dl):
    "(class, number) of the images of each episode, support and queries"
    return [(identity(b.support_x).tolist(), identity(b.query_x).tolist()) for b in dl]


def test_labels_belong_to_the_images(make_dls):
    dls = make_dls()
    for dl in (dls.train, dls.valid):
        for b in dl:
            names = [int(dl.vocab[c][1:]) for c in b.classes]
            for x, y in ((b.support_x, b.support_y), (b.query_x, b.query_y)):
                assert identity(x)[:, 0].tolist() == [names[label] for label in y]


def test_support_and_queries_share_no_file(make_dls):
    for support, query in episodes(make_dls(n_episodes=30).train):
        assert len({tuple(o) for o in support + query}) == 3*2 + 3*3


def test_training_goes_on_to_new_episodes_and_validation_repeats_its_own(make_dls):
    dls = make_dls()
    assert episodes(dls.valid) == episodes(dls.valid)
    first, second = episodes(dls.train), episodes(dls.train)
    assert not any(o in second for o in first)
    assert first + second == episodes(make_dls().train) + episodes(dls.train.new(epoch=1))
    assert first != episodes(dls.train.new(seed=1, epoch=0))


def test_looking_at_an_episode_changes_nothing(make_dls):
    dls = make_dls()
    dls.one_batch(), dls.train.episode(3)
    assert episodes(dls.train) == episodes(make_dls().train)


@pytest.mark.parametrize('cache', [None, False])
def test_workers_change_nothing(make_dls, cache):
    alone, two, uncached = (make_dls(num_workers=n, cache=c) for n, c in ((0, cache), (2, cache), (0, False)))
    for _ in range(2): assert episodes(alone.train) == episodes(two.train) == episodes(uncached.train)
    assert episodes(alone.valid) == episodes(two.valid)
    for b in two.train: assert len(b.classes) == 3 and b.classes == b.query_y.classes
    if cache is None: assert len(two.train.cache) > 10, 'workers fill it for all'


def test_way_shot_and_queries_of_a_copy_can_differ(make_dls):
    b = make_dls().valid.new(n_way=1, n_shot=4, n_query=1).one_batch()
    assert (b.n_way, b.n_shot, b.n_query) == (1, 4, 1)


def test_images_come_in_order_whatever_the_set(make_dls):
    dls = make_dls()
    for dl in (dls.train, dls.valid):
        batches = list(dl.images(bs=5))
        names = [f'c{c:02}' for x, _ in batches for c, _ in identity(x)]
        assert names == [item[1] for item in dl.items] == [dl.vocab[c] for _, y in batches for c in y]
        assert torch.cat([y for _, y in batches]).tolist() == dl.labels


def test_training_classes_come_first(make_dls):
    dls = make_dls()
    assert set(dls.train.labels) == set(range(dls.n_classes)) and min(dls.valid.labels) == dls.n_classes


def test_image_split_holds_out_a_share_of_every_class(make_dls):
    train, valid = make_dls().train.image_split(bs=4, valid_pct=.25)
    held_out = [tuple(o) for x, _ in valid for o in identity(x)]
    kept = [tuple(o) for x, _ in train for o in identity(x)]
    assert not set(held_out) & set(kept) and len(held_out) == len({c for c, _ in kept}) * 2
    assert kept != [tuple(o) for x, _ in train for o in identity(x)], 'not shuffled'


def test_cache_decodes_each_image_once(make_dls, tree):
    dls = make_dls()
    list(dls.train.images())
    dls.build_cache(progress=False)
    assert not make_dls(cache=False).train.build_cache()
    for f in tree.rglob('*.png'): f.write_bytes(b'gone')
    assert [len(dl.cache) for dl in dls] == [len(dl.items) for dl in dls] and len(episodes(dls.train)) == 6


def test_decoded_images_in_a_folder_give_the_same_episodes_to_later_runs(make_dls, tree, tmp_path):
    plain = episodes(make_dls(cache=False, num_workers=0).train)
    assert episodes(make_dls(cache=tmp_path/'cache').train) == plain
    files = set((tmp_path/'cache').glob('*.npy'))
    later = make_dls(cache=str(tmp_path/'cache')).train
    assert episodes(later) == plain and episodes(later.new(num_workers=2, epoch=0)) == plain
    assert set((tmp_path/'cache').glob('*.npy')) == files


def test_an_edited_image_or_transform_is_decoded_anew(make_dls, tree, tmp_path):
    dl = make_dls(cache=tmp_path/'cache').train
    before = {tuple(o) for x, _ in dl.images() for o in identity(x)}
    file = dl.items[0][0]
    Image.new('RGB', (12, 12), (77, 7, 0)).save(file)
    assert {tuple(o) for x, _ in make_dls(cache=tmp_path/'cache').train.images() for o in identity(x)} != before
    smaller = make_dls(cache=tmp_path/'cache', item_tfms=Resize(6, method='squish')).train
    assert smaller.one_batch().query_x.shape[-2:] == (6, 6) and len(list((tmp_path/'cache').glob('*.npy'))) == 3


def test_images_that_are_no_files_stay_in_memory(tmp_path):
    pairs = [(torch.full((3, 4, 4), 10*c + i, dtype=torch.uint8), c) for c in range(3) for i in range(5)]
    dl = EpisodicDL(pairs, n_way=3, n_shot=1, n_query=2, num_workers=0, cache=tmp_path/'cache')
    dl.one_batch()
    assert len(dl.cache) == 9 and not (tmp_path/'cache').exists()


def test_images_that_do_not_fit_are_decoded_anew_and_it_says_so(make_dls):
    dls = make_dls(cache=1e-6)
    with pytest.warns(UserWarning, match='more than the 1e-06 GB that their cache may take'): got = episodes(dls.train)
    assert got == episodes(make_dls().train)


def test_random_crops_of_items_are_not_frozen(make_dls):
    crop = RandomResizedCrop(8)
    assert make_dls(item_tfms=crop).train.cache is None
    for cache in (True, 'cpu'):
        with pytest.raises(ValueError, match=f'cache={cache} would freeze .*RandomResizedCrop'):
            make_dls(item_tfms=crop, cache=cache)


def test_images_of_several_sizes_are_named(make_dls, tree):
    Image.new('RGB', (9, 12)).save(tree/'c00'/'00.png')
    with pytest.raises(ValueError, match='item_tfms must bring all to one size'): list(make_dls().train.images())


def test_skipped_image_is_an_error_that_names_it(make_dls):
    def skip_some(x: PILImage):
        if x.getpixel((0, 0))[1] == 5: raise SkipItemException
        return x
    for cache in (None, False):
        dl = make_dls(item_tfms=skip_some, cache=cache, num_workers=0).train
        with pytest.raises(RuntimeError, match=r'c\d\d.05\.png.*leave it out'): list(dl)


def test_broken_image_is_named_in_mid_epoch(make_dls, tree):
    for folder in tree.iterdir():
        f = folder/'03.png'
        f.write_bytes(f.read_bytes()[:50])
    with pytest.raises(OSError, match=r'c\d\d.03\.png cannot be read'): list(make_dls(verify=False, n_episodes=30).train)


def test_empty_copy_has_no_images_and_still_takes_new_ones(make_dls, tree):
    dls = make_dls()
    size = dls.img_size
    empty = pickle.loads(pickle.dumps(dls.new_empty()))
    assert len(empty.train) == 0 and (empty.img_size, empty.train.n_way, empty.n_inp) == (size, 3, 3)
    assert list(empty.vocab) == list(dls.vocab) and str(tree).encode() not in pickle.dumps(dls.new_empty())
    (x,), = empty.test_dl([tree/'c03'/'05.png'])
    assert identity(x).tolist() == [[3, 5]]


def test_test_dl_without_labels_gives_images_and_with_labels_episodes(make_dls):
    dls = make_dls()
    items = list(dls.valid.items)
    assert isinstance(dls.test_dl([f for f, _ in items]), ImageDL)
    labelled = dls.test_dl(items, with_labels=True)
    assert isinstance(labelled, EpisodicDL) and labelled.one_batch().n_way == 2


def test_plain_dataset_without_fastai_transforms():
    class Pairs(list):
        classes = ['a', 'b', 'c']
    pairs = Pairs((torch.full((3, 4, 4), 10*c + i, dtype=torch.uint8), c) for c in range(3) for i in range(5))
    dl = EpisodicDL(pairs, n_way=3, n_shot=1, n_query=2, num_workers=0)
    b = dl.one_batch()
    assert (b.query_x[:, 0, 0, 0] // 10).tolist() == [b.classes[label] for label in b.query_y]
    assert [dl.vocab[c] for c in dl.labels] == ['a']*5 + ['b']*5 + ['c']*5


def test_no_warnings_in_a_plain_pass(make_dls):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        list(make_dls(item_tfms=None, batch_tfms=None, size=12).train)  # torch has words for a corner left to its default


def test_augmented_images_are_those_of_fastai_s_own_transforms(make_dls):
    item_tfms, tfms = episode_transforms(12)
    own = aug_transforms(size=12, max_rotate=0., max_warp=0., max_zoom=1.5, p_affine=1., max_lighting=.4)
    plain = [tfms[0], *own, Normalize(tfms[-1].mean, tfms[-1].std)]
    episodes = []
    for batch_tfms in (tfms, plain):
        dl = make_dls(item_tfms=item_tfms, batch_tfms=batch_tfms).train
        dl.one_batch()
        torch.manual_seed(1)
        episodes.append(dl.episode(2))
    torch.testing.assert_close(episodes[0].query_x, episodes[1].query_x, rtol=0, atol=1e-5)
    assert episodes[0].query_x.shape == (9, 3, 12, 12) and episodes[0].query_x.std() > .1


def test_episodes_that_are_kept_stay_as_they_are(make_dls):
    dls = make_dls(item_tfms=None, batch_tfms=None, size=12, n_episodes=9)
    kept = list(dls.valid)
    copies = [tuple(o.clone() for o in b) for b in kept]
    starts = {b.support_x.data_ptr() for dl in (dls.train, dls.valid) for b in dl}
    assert not starts & {b.support_x.data_ptr() for b in kept}
    for b, copy in zip(kept, copies, strict=True): assert all(map(torch.equal, b, copy))


def test_workers_leave_the_device_to_the_process_that_has_it(make_dls, monkeypatch):
    monkeypatch.setattr('fastai.data.load.to_device', lambda b, device: b)
    dl = make_dls(num_workers=2).train
    dl._device = torch.device('cuda', 0)  # as where there is one
    for b in dl: assert b.query_x.device.type == 'cpu' and not b.query_x.is_pinned()


def test_a_loader_without_cuda_sends_nothing(make_dls):
    flat, = make_dls().train.create_batches([(0, 0)])
    assert [o.device.type for o in flat] == ['cpu', 'cpu'] and flat[0].dtype is torch.uint8


@pytest.mark.gpu
@pytest.mark.parametrize('cache', [None, False])
def test_episodes_reach_the_gpu_unchanged(make_dls, cache):
    settings = dict(item_tfms=None, batch_tfms=None, size=12, cache=cache, num_workers=0)
    cpu, gpu = (make_dls(**settings, device=device).valid for device in ('cpu', GPU))
    def same(ours, expected):
        assert type(ours) is type(expected)
        torch.testing.assert_close(*(o.cpu().as_subclass(torch.Tensor) for o in (ours, expected)), rtol=0, atol=1e-5)
    for b, sent in zip(cpu, gpu, strict=True):
        assert {o.is_cuda for o in sent} == {ON_CUDA} and sent.classes == b.classes and sent.query_y.classes == b.classes
        for ours, expected in zip(sent, b, strict=True): same(ours, expected)
    for b, sent in zip(cpu.images(bs=5), gpu.images(bs=5), strict=True):
        assert {o.is_cuda for o in sent} == {ON_CUDA}
        for ours, expected in zip(sent, b, strict=True): same(ours, expected)


@pytest.mark.gpu
@pytest.mark.skipif(not ON_CUDA, reason='no memory to pin')
def test_bytes_reach_the_gpu_through_pinned_memory(make_dls, monkeypatch):
    sent = []

    def send(b, device, **kwargs):
        sent.append((b, kwargs))
        return b.to(device, **kwargs)
    monkeypatch.setattr('fsc_fastai.data.loader.to_device', send)
    dl = make_dls(device='cuda').train
    (x, y), = dl.create_batches([(0, 0)])
    assert x.is_cuda and y.is_cuda and len(sent) == 2
    for b, kwargs in sent: assert b.is_pinned() and kwargs == {'non_blocking': True}
    assert torch.equal(x.cpu(), sent[0][0]) and torch.equal(y.cpu(), sent[1][0]) and y.n_support == 6


@pytest.mark.gpu
@pytest.mark.parametrize('cache', [None, GPU])
@pytest.mark.parametrize('part', ['train', 'valid', 'images'])
def test_taking_a_batch_does_not_wait_for_the_gpu(make_dls, part, cache):
    dls = make_dls(item_tfms=None, batch_tfms=None, size=12, device=GPU, cache=cache).build_cache(progress=False)
    batches = iter(dls.valid.images(bs=4) if part == 'images' else getattr(dls, part))
    next(batches)
    with no_waiting(): b = next(batches)
    assert {o.is_cuda for o in b} == {ON_CUDA}
