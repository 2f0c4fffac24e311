"The memory of a batch is used again once nobody has anything on it, and never before"
import multiprocessing as mp
import sys
import threading

import numpy as np
import pytest
import torch
from fastai.torch_core import TensorImage

from fsc_fastai.data import pages
from fsc_fastai.data.pages import MB, Buffers, empty_batch

SHAPE = (3, 2**19)


@pytest.fixture
def buffers(monkeypatch):
    "Buffers that no other test has used"
    fresh = Buffers()
    monkeypatch.setattr(pages, '_buffers', fresh)
    return fresh


def saved_by_a_graph(x): return torch.ones(SHAPE, requires_grad=True) * x


KEEPERS = {
    'the batch': lambda x: x, 'a view': lambda x: x[1:], 'a crop': lambda x: x[..., 5:9], 'detached': torch.detach,
    'as bytes': lambda x: x.view(torch.uint8), 'array': torch.Tensor.numpy, 'part of the array': lambda x: x.numpy()[2, 7:],
    'memoryview': lambda x: memoryview(x.numpy()), 'storage': torch.Tensor.untyped_storage, 'TensorImage': TensorImage,
    'subclass': lambda x: x.as_subclass(TensorImage)[1], 'dlpack': np.from_dlpack, 'graph': saved_by_a_graph,
    'tensor of its array': lambda x: torch.from_numpy(x.numpy()[1:]),
}


@pytest.mark.parametrize('keeper', KEEPERS)
def test_what_someone_keeps_is_used_again_only_afterwards(buffers, keeper):
    batch = empty_batch(SHAPE, torch.float32).fill_(7.)
    at, kept = batch.data_ptr(), KEEPERS[keeper](batch)
    del batch
    others = [empty_batch(SHAPE, torch.float32).fill_(0.) for _ in range(3)]
    assert at not in {o.data_ptr() for o in others}
    if keeper == 'graph': assert torch.autograd.grad(kept.sum(), kept.grad_fn.next_functions[0][0].variable)[0].eq(7.).all()
    elif keeper == 'storage': assert torch.empty(0).set_(kept).eq(7.).all()
    else: assert np.all(np.asarray(kept).view(np.float32) == 7.)
    del kept
    assert empty_batch(SHAPE, torch.float32).data_ptr() == at


def test_a_batch_is_an_ordinary_tensor(buffers):
    for pixels in (2**20, 8):
        batch = empty_batch(torch.Size([3, pixels]), torch.float32)
        assert batch.shape == (3, pixels) and batch.dtype is torch.float32 and batch.fill_(2.).sum() == 6 * pixels
        assert batch.is_contiguous() and batch.untyped_storage().nbytes() == 12 * pixels
    assert len(buffers.kept) == 1, 'small ones cost little anew'


def test_shared_memory_of_workers_leaves_the_buffer_free(buffers):
    batch = empty_batch(SHAPE, torch.uint8).fill_(3)
    at = batch.data_ptr()
    batch.share_memory_()
    assert empty_batch(SHAPE, torch.uint8).fill_(5).data_ptr() == at and batch.eq(3).all()


def test_a_buffer_serves_batches_that_are_little_smaller(buffers):
    at = empty_batch((100, 2**18), torch.uint8).data_ptr()
    smaller = empty_batch((90, 2**18), torch.uint8)
    assert smaller.data_ptr() == at and smaller.untyped_storage().nbytes() == 90 * 2**18
    del smaller
    assert empty_batch((50, 2**18), torch.uint8).data_ptr() != at and empty_batch((101, 2**18), torch.uint8).data_ptr() != at


def test_bytes_kept_are_bounded():
    buffers = Buffers(most_bytes=10 * MB)
    arrays = [buffers.take(MB) for _ in range(25)]
    assert len({a.ctypes.data for a in arrays}) == 25 and sum(b.nbytes for b, _ in buffers.kept) == 10 * MB
    buffers.take(11 * MB)
    assert not buffers.kept, 'one too large leaves none'


def use(buffers, number, wrong):
    try:
        for _ in range(4000):
            arrays = [buffers.take(64) for _ in range(2)]
            for k, a in enumerate(arrays): a[:] = 2*number + k
            if any((a != 2*number + k).any() for k, a in enumerate(arrays)): wrong.append(number)
    except Exception as e: wrong.append(e)


def test_threads_do_not_share_a_buffer():
    buffers, wrong, interval = Buffers(), [], sys.getswitchinterval()
    threads = [threading.Thread(target=use, args=(buffers, number, wrong)) for number in range(4)]
    sys.setswitchinterval(1e-6)
    try:
        for t in threads: t.start()
        for t in threads: t.join()
    finally: sys.setswitchinterval(interval)
    assert not wrong and len(buffers.kept) <= 4 * 4, 'two in use in each, and the two of before'


def take_some():
    for _ in range(3): empty_batch(SHAPE, torch.uint8).zero_()


@pytest.mark.filterwarnings('ignore:.*multi-threaded.*fork:DeprecationWarning')
def test_a_forked_process_finds_the_lock_open_and_writes_to_its_own_memory():
    kept, taken = empty_batch(SHAPE, torch.uint8).fill_(9), threading.Event()

    def hold():
        with pages._buffers.lock:
            taken.set()
            threading.Event().wait(.2)
    holder, child = threading.Thread(target=hold), mp.get_context('fork').Process(target=take_some)
    holder.start()
    taken.wait()
    child.start()
    child.join(30)
    hangs = child.is_alive()
    child.kill()
    holder.join()
    assert not hangs and child.exitcode == 0 and kept.eq(9).all()
