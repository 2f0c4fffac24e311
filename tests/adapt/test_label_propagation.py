"Label propagation step by step: the graph, what is kept, and the answers"
import pytest

from fsc_fastai.adapt.label_propagation import affinities, confident, normalised, propagate

from ..golden_files import golden, load


@pytest.mark.parametrize('path', golden('label_propagation_[a-z].npz'), ids=lambda path: path.stem)
def test_steps_are_the_published_ones(path):
    arrays, _ = load(path)
    # of the recorded float32 one query fewer were dropped
    k, delta, alpha = (round(arrays[name].item(), 6) for name in ('k', 'delta', 'alpha'))
    def same(ours, name):
        assert ours.shape == arrays[name].shape
        assert (ours - arrays[name]).abs().max() <= 1e-5*arrays[name].abs().max(), name
    W = affinities(arrays['feature'], int(k))
    same(W, 'affinity')
    same(normalised(W), 'normalised')
    assert (W > 0).gather(1, arrays['neighbours']).all()
    kept = confident(arrays['probability'].double(), delta)
    same(kept, 'kept')
    assert ((kept == 0).sum(0) == arrays['dropped']).all()
    same(propagate(arrays['feature'], arrays['probability'], int(k), delta, alpha), 'refined')
