"GNNNet and its graphs"
import pytest
import torch
from torch.testing import assert_close

from .toys import feature_episode, feature_model


def test_a_graph_holds_one_query_of_each_class():
    model = feature_model('gnn')
    support_x, support_y, query_x, _ = feature_episode(n_query=3)
    nodes = model.process(support_x, support_y, query_x)
    z = model.fc(torch.cat([support_x, query_x]).mean((2, 3)))
    assert nodes.features.shape == (3, 15, 128) and nodes.labels.shape == (3, 15, 5)
    assert_close(nodes.features[1, 10:], z[10:].view(5, 3, 128)[:, 1])
    assert_close(nodes.features[2, :10], z[:10])
    assert_close(nodes.labels[0, :10].argmax(1), support_y.as_subclass(torch.Tensor))
    assert not nodes.labels[:, 10:].any()


@pytest.mark.parametrize('n_query, n_graphs, n_per_graph', [(1, 1, 1), (4, 1, 4), (5, 1, 5), (6, 2, 3), (7, 2, 4), (11, 3, 4)])
def test_queries_that_do_not_fill_the_graphs(n_query, n_graphs, n_per_graph):
    model, (support_x, support_y, query_x, _) = feature_model('gnn'), feature_episode()
    nodes = model.process(support_x, support_y, query_x[:n_query])
    assert nodes.features.shape[:2] == (n_graphs, 10 + n_per_graph)
    assert model.classify(nodes).shape == (n_query, 5)


def test_each_score_belongs_to_its_query():
    "A query whose node is changed changes its own score most"
    model, (support_x, support_y, query_x, _) = feature_model('gnn'), feature_episode()
    for j in range(7):
        nodes = model.process(support_x, support_y, query_x[:7])
        features = nodes.features.detach().requires_grad_()
        graph, slot = j % 2, 10 + j // 2
        model.classify(nodes.with_features(features))[j].square().sum().backward()
        assert features.grad.flatten(0, 1).norm(dim=1).argmax() == graph * nodes.features.shape[1] + slot


def test_another_way_than_in_training():
    model = feature_model('gnn', n_way=5)
    with pytest.raises(ValueError, match='5-way episodes, found 3-way'): model(*feature_episode(n_way=3)[:3])


def test_trace_holds_what_each_layer_saw():
    model, (support_x, support_y, query_x, _) = feature_model('gnn'), feature_episode()
    nodes = model.process(support_x, support_y, query_x)
    scores, trace = model.classify_with_trace(nodes)
    assert_close(scores, model.classify(nodes))
    assert [t.x.shape[2] for t in trace] == [133, 133 + 48, 133 + 96]
    for t in trace:
        assert_close(t.adjacency.sum(-1), torch.ones(t.adjacency.shape[:2]))
        assert not t.adjacency.diagonal(dim1=1, dim2=2).any()
        assert_close(t.gathered, torch.cat([t.x, t.adjacency @ t.x], 2))
    last = model.gnn.last.fc(trace[-1].gathered)
    assert_close(last[:, 10:].transpose(0, 1).flatten(0, 1), scores)


def test_flattened_maps_are_nodes_too():
    model = feature_model('gnn', pool='flatten')
    assert model.fc[0].in_features == 150
    assert model(*feature_episode()[:3]).shape == (15, 5)
    with pytest.raises(ValueError, match='96.*built for 150.*img_size'): model(*feature_episode(size=4)[:3])


def test_all_ordered_pairs_give_the_adjacency_of_the_unordered(monkeypatch):
    "What a GPU computes; with gradients of both orders, which LFT needs"
    adjacency = feature_model('gnn').double().train().gnn.layers[0].adjacency
    x = torch.randn(3, 6, 133, dtype=torch.float64, requires_grad=True)

    def found(exporting):
        monkeypatch.setattr(torch.compiler, 'is_exporting', lambda: exporting)  # where they are taken on a CPU, too
        weight = adjacency(x)
        loss = weight.sin().sum()
        grads = torch.autograd.grad(loss, [x, *adjacency.parameters()], create_graph=True)
        return weight, grads[0], torch.autograd.grad(sum(g.square().sum() for g in grads), x)[0]
    (a, *grads_a), (b, *grads_b) = found(False), found(True)
    assert_close(a, b)
    for g, h in zip(grads_a, grads_b, strict=True): assert_close(g, h)
    norm, rows = adjacency.hidden[1], torch.randn(5, 4, adjacency.hidden[1].num_features)
    assert_close(norm.statistics(rows, None), norm.statistics(rows.flatten(0, 1), torch.full((20, 1), 1/20)))
