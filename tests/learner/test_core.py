"The Learner: three lines to train, fastai's methods on episodes, nothing lost in an error"
import pickle

import pytest
import torch
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.tracker import SaveModelCallback
from fastai.interpret import ClassificationInterpretation
from fastai.learner import Callback
from fastai.optimizer import SGD
from fastai.torch_core import set_seed

from fsc_fastai.callback.accumulate import EpisodeAccumulation
from fsc_fastai.callback.guided import LRPGuidedCallback
from fsc_fastai.callback.lft import LFTCallback
from fsc_fastai.encode import create_encoder, load_reference_state
from fsc_fastai.learner.core import encoder_head_splitter, fsc_learner
from tests.learners import hue_learner, hue_loaders, weights


def test_three_lines_learn_unseen_classes(root):
    "The three-line path must not end at chance, which is 1/3 here"
    set_seed(1)
    learn = hue_learner(root, dls_kwargs=dict(n_episodes=8))
    learn.fine_tune(2, pretrain_epochs=6)
    assert learn.evaluate(n_episodes=40, n_query=6).accuracy.item() > 0.6


def test_freeze_holds_the_encoder(root):
    learn = hue_learner(root)
    learn.freeze()
    assert not any(p.requires_grad for n, p in learn.model.encoder.named_parameters() if 'norm' not in n and p.ndim > 1)
    encoder, head = encoder_head_splitter(learn.model)
    assert {id(p) for p in encoder + head} == {id(p) for p in learn.model.parameters()}
    assert {id(p) for p in encoder} == {id(p) for p in learn.model.encoder.parameters()}


def test_a_pretrained_encoder_is_taken_over(root):
    encoder = create_encoder('conv4', img_size=20)
    learn = hue_learner(root, pretrained=encoder)
    for ours, theirs in zip(learn.model.encoder.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(ours, theirs) and ours is not theirs


def test_fits_twice_with_the_same_weights(root):
    def train():
        set_seed(3, reproducible=True)
        learn = hue_learner(root)
        learn.fit_one_cycle(2, 1e-3)
        return weights(learn)
    first, second = train(), train()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_get_preds_keeps_the_order_of_the_episodes(root):
    learn = hue_learner(root, 'proto')
    preds, targets = learn.get_preds()
    torch.testing.assert_close(learn.get_preds(reorder=False), (preds, targets))
    again = [(learn.model(*b[:3]), b[3]) for b in learn.dls.valid]
    assert preds.shape == (4*3*3, 3) and targets.shape == (4*3*3,)
    torch.testing.assert_close(preds, torch.cat([p for p, _ in again]).softmax(1).as_subclass(torch.Tensor), check_dtype=False)
    assert torch.equal(targets.as_subclass(torch.Tensor), torch.cat([y for _, y in again]).as_subclass(torch.Tensor))


def test_lr_find_leaves_weights_episodes_and_the_need_of_pretraining(root):
    learn, like = (hue_learner(root, dls_kwargs=dict(batch_tfms=[])) for _ in range(2))
    before = weights(learn)
    assert learn.lr_find(num_it=6, show_plot=False).valley > 0
    assert all(torch.equal(before[k], v) for k, v in weights(learn).items()) and not learn.encoder_trained
    assert torch.equal(learn.dls.train.one_batch()[0], like.dls.train.one_batch()[0]) and learn.dls.train.epoch == 0
    assert f'Total params: {sum(p.numel() for p in learn.model.parameters()):,}' in learn.summary()


def trains_frozen(learn):
    learn.freeze()
    learn.fit(1)


def keeps_the_best_frozen(learn):
    learn.freeze()
    learn.fit(1, cbs=SaveModelCallback('accuracy'))  # loads the best weights at the end


def other_model(learn): return fsc_learner(learn.dls, 'conv4').model


@pytest.mark.parametrize(('use', 'trained'), [
    (lambda learn: None, False), (trains_frozen, False), (keeps_the_best_frozen, False),
    (lambda learn: learn.lr_find(num_it=6, show_plot=False), False),
    (lambda learn: learn.fit(1), True), (lambda learn: (learn.freeze(), learn.unfreeze(), learn.fit(1)), True),
    (lambda learn: learn.pretrain_encoder(1), True), (lambda learn: (learn.save('a'), learn.load('a')), True),
    (lambda learn: load_reference_state(learn.model, other_model(learn).state_dict()), True),
    (lambda learn: learn.model.encoder.load_state_dict(other_model(learn).encoder.state_dict()), True)])
def test_fine_tune_pretrains_an_encoder_that_nobody_has_trained(root, monkeypatch, use, trained):
    learn = hue_learner(root)
    use(learn)
    epochs = []
    monkeypatch.setattr('fsc_fastai.learner.learner.pretrain_encoder', lambda dls, encoder, n, *args, **kwargs: epochs.append(n))
    for _ in range(2): learn.fine_tune(1)
    assert epochs == ([] if trained else [20]), 'once'


def test_a_module_is_taken_as_untrained_unless_pretrained_says_otherwise(root):
    body = create_encoder('conv4', img_size=20)
    assert not hue_learner(root, arch=body).encoder_trained and not hue_learner(root, arch=body.body).encoder_trained
    for trained in (hue_learner(root, arch=body, pretrained=True), hue_learner(root, pretrained=body),
                    hue_learner(root, pretrained=body.state_dict())): assert trained.encoder_trained


def test_show_results(root):
    import matplotlib.pyplot as plt
    hue_learner(root).show_results()
    assert plt.get_fignums()


def test_interpretation_of_fastai_is_refused(root):
    with pytest.raises(TypeError, match='confusion'): ClassificationInterpretation.from_learner(hue_learner(root))


def test_accumulation_equals_the_mean_gradient_of_its_episodes(root):
    "With plain SGD two accumulated episodes are one step along the mean of their gradients"
    learn = hue_learner(root, 'proto', cbs=EpisodeAccumulation(2), opt_func=SGD, dls_kwargs=dict(n_episodes=2, batch_tfms=[]),
                        method_kwargs=dict(distance='cosine'))  # of squared distances the gradient is 0 on classes so easy
    start, grads = [p.clone() for p in learn.model.parameters()], []
    learn.model.train()
    epoch = list(learn.dls.train.new(shuffle=False, epoch=learn.dls.train.epoch))
    for module in learn.model.modules():
        if isinstance(module, torch.nn.BatchNorm2d): module.momentum = 0
    for b in epoch:
        loss = learn.loss_func(learn.model(*b[:3]), b[3])
        grads.append(torch.autograd.grad(loss.as_subclass(torch.Tensor), list(learn.model.parameters())))
    assert max(g.abs().max() for g in grads[0]) > 1e-3
    learn.dls.train.shuffle = False
    learn.fit(1, 0.1, wd=0)
    for p, p0, *g in zip(learn.model.parameters(), start, *grads, strict=True):
        torch.testing.assert_close(p, p0 - 0.1*(g[0] + g[1])/2, rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match='n_acc=0'): EpisodeAccumulation(0)


@pytest.mark.parametrize('method', ['relation', 'can', 'proto'])
def test_channels_last_is_another_layout_of_the_same_training(root, method):
    def trained(*cbs):
        set_seed(0, reproducible=True)
        learn = hue_learner(root, method, opt_func=SGD, lr=1e-3, dls_kwargs=dict(n_episodes=2), cbs=[
            LFTCallback(hue_loaders(root, seed=1), ft_lr=1e-3), LRPGuidedCallback(), *cbs])
        before = weights(learn)
        learn.fit(1)
        return learn, before
    (plain, before), (last, _) = trained(), trained(ChannelsLast())
    assert last.model.encoder(torch.rand(2, 3, 20, 20)).is_contiguous(memory_format=torch.channels_last)
    expected, found = weights(plain), weights(last)
    assert all(torch.allclose(found[k], expected[k], rtol=1e-3, atol=1e-5) for k in expected)
    assert any(not torch.allclose(found[k], before[k], rtol=1e-3, atol=1e-5) for k in expected)


class Boom(Callback):
    def before_step(self): raise RuntimeError('boom')


def test_an_error_in_mid_batch_leaves_the_learner_usable(root):
    learn = hue_learner(root)
    with pytest.raises(RuntimeError, match='boom'): learn.fit(1, cbs=Boom())
    assert learn.xb == (None,) and not any(isinstance(cb, Boom) for cb in learn.cbs)
    learn.fit(1)
    learn.export('after.pkl')


class Unpicklable(Callback):
    def __getstate__(self): raise pickle.PicklingError('not me')


def test_a_failed_export_loses_nothing(root):
    learn = hue_learner(root)
    learn.fit(1)
    learn.export('learner.pkl')
    old = (root.parent/'learner.pkl').read_bytes()
    dls, opt = learn.dls, learn.opt
    learn.add_cb(Unpicklable())
    with pytest.raises(pickle.PicklingError): learn.export('learner.pkl')
    assert learn.dls is dls and learn.opt is opt
    assert (root.parent/'learner.pkl').read_bytes() == old and not list(root.parent.glob('*.part'))
    learn.remove_cb(Unpicklable)
    learn.fit(1)
