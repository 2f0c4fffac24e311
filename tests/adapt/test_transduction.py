"Transductive inference against the published implementation"
import pytest
import torch

from fsc_fastai.adapt.transduction import scale_candidates, transductive_scores
from fsc_fastai.encode import load_reference_state
from fsc_fastai.methods import GNNNet, RelationNet
from tests.golden_files import load, recorded
from tests.methods.toys import feature_encoder


@recorded('relation_net_transductive*.npz')
def test_equals_the_published_scores(path):
    data, weights = load(path)
    support, query = data['support'], data['query']
    model = RelationNet(feature_encoder(*support.shape[2:4]), n_way=len(support)).eval()
    assert not load_reference_state(model, weights).missing
    y = torch.arange(len(support)).repeat_interleave(support.shape[1])
    f_support, f_query = support.flatten(0, 1), query.flatten(0, 1)
    torch.testing.assert_close(model.forward_head(f_support, y, f_query).sigmoid(), data['score_inductive'], rtol=1e-4, atol=1e-5)
    scores = transductive_scores(model.head(), f_support, y, f_query, data['candidates'].tolist())
    torch.testing.assert_close(scores.sigmoid(), data['score_transductive'], rtol=1e-4, atol=1e-5)


def test_candidates_scale_with_fewer_queries():
    assert scale_candidates(80) == scale_candidates(75) == (35, 70)
    assert scale_candidates(15) == (7, 14)
    assert scale_candidates(1) == (1, 1)


def test_gnn_is_refused():
    model = GNNNet(feature_encoder(8, 2), n_way=3).eval()
    with pytest.raises(TypeError, match='GNN'):
        transductive_scores(model.head(), torch.rand(3, 8, 2, 2), torch.arange(3), torch.rand(6, 8, 2, 2))
