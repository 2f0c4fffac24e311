"Label propagation step by step: the graph, what is kept, and the answers"
from fsc_fastai.adapt.label_propagation import affinities, confident, normalised, propagate

from ..golden_files import load, recorded, same


@recorded('label_propagation_[a-z].npz')
def test_steps_are_the_published_ones(path):
    arrays, _ = load(path)
    # of the recorded float32 one query fewer were dropped
    k, delta, alpha = (round(arrays[name].item(), 6) for name in ('k', 'delta', 'alpha'))
    W = affinities(arrays['feature'], int(k))
    same(W, arrays['affinity'], 1e-5)
    same(normalised(W), arrays['normalised'], 1e-5)
    assert (W > 0).gather(1, arrays['neighbours']).all()
    kept = confident(arrays['probability'].double(), delta)
    same(kept, arrays['kept'], 1e-5)
    assert ((kept == 0).sum(0) == arrays['dropped']).all()
    same(propagate(arrays['feature'], arrays['probability'], int(k), delta, alpha), arrays['refined'], 1e-5)
