"The memory that decoded images may take"
import gc
import pickle

import pytest
import torch

from fsc_fastai.data.cache import GB, ImageCache


def image(i: int) -> torch.Tensor: return torch.full((3, 4, 4), i % 256, dtype=torch.uint8)


def test_each_image_is_loaded_once_and_stays_itself():
    loaded, cache = [], ImageCache(6)

    def load(i):
        loaded.append(i)
        return image(i)
    cache.prepare(load)
    for idxs in ([4, 1, 4], [1, 5], [5, 4, 1]):
        assert cache.get(idxs, load)[:, 0, 0, 0].tolist() == idxs
    assert sorted(loaded) == [0, 1, 4, 5] and len(cache) == 3 and '3 of 6' in repr(cache)


def test_all_caches_share_a_budget_and_give_it_back(monkeypatch):
    gc.collect()
    monkeypatch.setattr(ImageCache, 'budget_gb', ImageCache._used/GB + 1000/GB)
    one, two = ImageCache(20), ImageCache(20)
    assert one.prepare(image)
    with pytest.warns(UserWarning, match='20 images of 3×4×4 need'): assert not two.prepare(image)
    assert ImageCache(20, limit_gb=.1).prepare(image), 'a limit of its own'
    del one
    gc.collect()
    assert ImageCache(20).prepare(image)


def test_only_bytes_are_kept():
    with pytest.warns(UserWarning, match='torch.float32 are not cached'):
        assert not ImageCache(3).prepare(lambda i: image(i).float())


def test_pickled_it_is_empty():
    cache = ImageCache(1000, limit_gb=.5)
    cache.prepare(image)
    cache.get(range(1000), image)
    assert len(pickle.dumps(cache)) < 200 and len(pickle.loads(pickle.dumps(cache))) == 0


def test_images_of_another_shape_are_named():
    cache = ImageCache(3)
    cache.prepare(image)
    with pytest.raises(ValueError, match=r'image 2 has the shape \(3, 5, 5\), the others \(3, 4, 4\)'):
        cache.get([2], lambda i: torch.zeros(3, 5, 5, dtype=torch.uint8))
