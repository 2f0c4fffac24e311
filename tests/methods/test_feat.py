"FEAT gives the numbers of its published implementations, and trains its attention"
import pytest
import torch
from torch import nn

from fsc_fastai.methods import FEAT, create_fsc_model

from ..golden_files import load, recorded, same
from .toys import feature_encoder


def feat(arrays, weights, dtype, **kwargs):
    model = FEAT(feature_encoder(arrays['support'].shape[1], 1), **kwargs)
    model.load_state_dict(weights)
    return model.to(dtype).eval()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@recorded('feat_*way_*shot.npz')
def test_feat(path, dtype):
    arrays, weights = load(path)
    arrays = {k: v.to(dtype) if v.is_floating_point() else v for k, v in arrays.items()}
    support, y, query = arrays['support'], arrays['support_y'], arrays['query']
    for variant, score in (('easyfsl', 'distance'), ('original_euclidean', 'euclidean'), ('original_cosine', 'cosine')):
        if f'{variant}.scores' not in arrays: continue
        temperature = float(arrays.get(f'{variant}.hp.temperature', 1.))
        model = feat(arrays, weights, dtype, score=score, temperature=temperature)
        f_p = model.process(support, y, query)
        if f'{variant}.prototypes' in arrays: same(f_p.support, arrays[f'{variant}.prototypes'], 1e-5)
        same(model.classify(f_p), arrays[f'{variant}.scores'], 1e-5)
        same(model.slf_attn.weights(arrays['prototypes_before']), arrays['attention'], 1e-5)


def test_attention_is_trained_and_dropped_at_random_in_training_only():
    torch.manual_seed(0)
    model, y = FEAT(feature_encoder(8, 1)), torch.arange(3).repeat_interleave(2)
    support, query = torch.randn(6, 8), torch.randn(6, 8)
    nn.functional.cross_entropy(model.forward_head(support, y, query), y).backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert not torch.equal(model.forward_head(support, y, query), model.forward_head(support, y, query))
    model.eval()
    assert torch.equal(model.forward_head(support, y, query), model.forward_head(support, y, query))


def test_an_unknown_score_is_named():
    with pytest.raises(ValueError, match="score='dot'"): FEAT(feature_encoder(8, 1), score='dot')


def test_it_is_known_by_name(): assert isinstance(create_fsc_model('feat', 'conv4', img_size=32), FEAT)
