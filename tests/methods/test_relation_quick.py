"The quick relation module gives the scores of the module itself, whatever the size of the maps"
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from fsc_fastai.adapt.head import DeployedHead, deployed_head
from fsc_fastai.methods import RelationNet
from fsc_fastai.methods.relation_quick import QuickRelation

C = 6
SIDES = [(1, 1), (2, 2), (3, 3), (2, 3), (4, 4), (5, 7), (9, 9), (10, 10), (13, 12)]
"Of maps: pools round up below 4, the convolutions go without padding from 10 on"


def relation_net(side, trained_on=None):
    "In double precision, with weights of either sign everywhere"
    encoder = nn.Identity()
    encoder.out_shape = (C, *(trained_on or side))
    model = RelationNet(encoder).double().eval()
    for p in model.parameters(): nn.init.normal_(p)
    return model


def maps(n, side): return torch.randn(n, C, *side, dtype=torch.double)


@pytest.mark.parametrize('side', SIDES, ids=str)
@pytest.mark.parametrize('shots', [(1, 1, 1), (3, 3), (4, 1, 2)], ids=str)
def test_the_scores_are_those_of_the_module(side, shots):
    model = relation_net(side)
    f_support, f_query = maps(sum(shots), side), maps(7, side)
    y = torch.repeat_interleave(torch.arange(len(shots)), torch.tensor(shots))
    quick, prepared = model.prepared(torch.cat([f_support, f_query]))
    assert type(quick) is QuickRelation and quick.prepared(prepared) == (quick, prepared)
    assert not prepared.requires_grad and len(prepared) == len(f_support) + 7
    n = len(f_support)
    assert_close(quick.forward_head(prepared[:n], y, prepared[n:]), model.forward_head(f_support, y, f_query).detach())


@pytest.mark.parametrize('side', [(3, 3), (5, 5), (8, 8)], ids=str)
def test_maps_of_another_size_than_in_training(side):
    model = relation_net(side, trained_on=(4, 6))
    f, y = maps(8, side), torch.arange(3)
    quick, prepared = model.prepared(f)
    assert_close(quick.forward_head(prepared[:3], y, prepared[3:]), model.forward_head(f[:3], y, f[3:]).detach())


def test_images_are_prepared_some_at_a_time():
    quick, f = QuickRelation(relation_net((3, 3)).relation), maps(7, (3, 3))
    assert_close(quick.prepare(f, bs=3), quick.prepare(f))


@pytest.mark.parametrize('side', SIDES, ids=str)
def test_a_deployed_head_uses_its_fixed_statistics(side):
    head, f = deployed_head(relation_net(side)), maps(5, side)
    head.fit(maps(6, side), torch.eye(3, dtype=torch.double).repeat(2, 1))
    assert head.model.relation.layer1.norm.running_mean is not None
    assert_close(head(f), DeployedHead.forward(head, f))
    assert_close(head(f[2:3]), head(f)[2:3])


def test_a_deployed_head_in_another_precision():
    head, f = deployed_head(relation_net((3, 3))), maps(4, (3, 3))
    head.fit(maps(6, (3, 3)), torch.eye(3, dtype=torch.double).repeat(2, 1)).float()
    assert head.quick is not None and head(f.float()).dtype == torch.float32
    assert_close(head(f.float()), DeployedHead.forward(head, f.float()))
    assert_close(head.double()(f), DeployedHead.forward(head, f))


def test_gradients_pass_a_deployed_head():
    head, f = deployed_head(relation_net((3, 3))), maps(4, (3, 3)).requires_grad_()
    head.fit(maps(2, (3, 3)), torch.eye(2, dtype=torch.double))
    found, = torch.autograd.grad(head(f).square().sum(), f)
    wanted, = torch.autograd.grad(DeployedHead.forward(head, f).square().sum(), f)
    assert found.any()
    assert_close(found, wanted)


def test_where_it_is_not_the_method_s_own_arithmetic_nothing_changes():
    class Mine(RelationNet):
        def classify(self, f_p): return -super().classify(f_p)
    class Whole(RelationNet):
        def forward_head(self, *args): return -super().forward_head(*args)
    f = maps(4, (3, 3))
    model = relation_net((3, 3))
    for cls in (Mine, Whole):
        model.__class__ = cls
        assert model.prepared(f) == (model, f)
        head = deployed_head(model).fit(f[:2], torch.eye(2, dtype=torch.double))
        assert_close(head(f), DeployedHead.forward(head, f))
    model = relation_net((3, 3)).train()
    assert model.prepared(f) == (model, f)
    model = relation_net((10, 10))
    assert model.prepared(maps(4, (6, 6)))[0] is model  # whose scores tell what is wrong
    small = maps(2, (6, 6))
    with pytest.raises(ValueError, match='8×8 at least, found 6×6'): model.forward_head(small, torch.arange(2), small)
