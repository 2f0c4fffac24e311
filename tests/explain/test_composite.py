"Which layer gets which rule"
import pytest
import torch
from torch import nn

from fsc_fastai.explain import LRP, AlphaBeta, Composite, Epsilon, Flat, Gamma, leak_report, paper_composite
from fsc_fastai.explain.settings import Settings


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1))
        self.head = nn.Linear(8, 3)

    def forward(self, x): return self.head(self.body(x).flatten(1))


def chosen(composite):
    "Layer name to rule, in the order in which layers ran"
    report = leak_report(Net(), torch.randn(1, 1, 4, 4), settings=Settings(composite))
    return dict(zip(report.layer[-2::-1], report.rule[-2::-1], strict=True))


def test_the_paper():
    rules = chosen(paper_composite(.25, 2.))
    assert rules == {'body.0': repr(AlphaBeta(2.)), 'body.2': repr(AlphaBeta(2.)), 'head': repr(Epsilon(.25))}


@pytest.mark.parametrize('selector,changed', [
    (0, ['body.0']), (-1, ['head']), (1, ['body.2']), ('body.2', ['body.2']), ('body.*', ['body.0', 'body.2']),
    (nn.Linear, ['head']), (nn.Conv2d, ['body.0', 'body.2'])], ids=str)
def test_selectors(selector, changed):
    rules = chosen(Composite({selector: Gamma(.1)}, paper_composite()))
    assert [name for name, rule in rules.items() if rule == repr(Gamma(.1))] == changed


@pytest.mark.parametrize('selector,near', [('nowhere', ''), ('hea', 'head'), (3, ''), (-4, ''), (nn.Conv1d, 'body.0')])
def test_a_selector_that_selects_nothing_is_named(selector, near):
    whole, part = Composite({selector: Gamma(.1)}, paper_composite()), Composite({0: Gamma(1.)}, Composite({selector: Flat()}))
    for composite in (whole, part):
        with pytest.raises(ValueError, match=f'{selector!r}.* selects no layer. There are 3, such as .*{near}'): chosen(composite)


def test_names_of_the_whole_model_are_known_where_a_part_of_it_runs():
    net = Net()
    rules = {'head': Flat(), 'body.?': Gamma()}
    for part, x in ((net.body, torch.randn(1, 1, 4, 4)), (net.head, torch.randn(1, 8))):
        assert LRP(composite=rules).trace(part, x, model=net).out.requires_grad
    with pytest.raises(ValueError, match="'hed'"): LRP(composite={'hed': Flat()}).trace(net.head, x, model=net)


def test_names_before_positions_before_classes_and_the_last_entry_wins():
    rules = chosen(Composite({'body.0': Gamma(1.), 0: Gamma(2.), nn.Conv2d: Gamma(3.), 2: Gamma(4.), 'head*': Gamma(5.),
                              'h*': Gamma(6.)}, paper_composite()))
    assert rules == {'body.0': repr(Gamma(1.)), 'body.2': repr(Gamma(3.)), 'head': repr(Gamma(6.))}


def test_functions_outside_modules_have_a_class():
    w = torch.randn(3, 4)
    net = lambda x: nn.functional.linear(x, w)
    found = LRP(composite={nn.Linear: Flat()}).relevance(net, torch.randn(1, 4), torch.ones(1, 3))
    torch.testing.assert_close(found, torch.full((1, 4), .75))


def test_no_rule_is_an_error_that_names_the_layer():
    "A composite of the user's own may leave a layer out: relevance by another rule would pass for theirs"
    with pytest.raises(NotImplementedError, match="layer 'head'.*composite="): chosen(Composite({nn.Conv2d: AlphaBeta(1.)}))
