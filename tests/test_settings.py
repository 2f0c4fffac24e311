"Settings that contradict each other: one of them everywhere, or an error at once that names both"
from functools import partial

import numpy as np
import pytest
import torch
from fastai.data.block import DataBlock
from fastai.data.transforms import Normalize, get_image_files, parent_label
from fastai.learner import load_learner
from fastai.losses import CrossEntropyLossFlat
from fastai.vision.augment import RandomResizedCrop, Resize, aug_transforms
from fastai.vision.core import PILImageBW
from fastai.vision.data import ImageBlock
from torch import nn

from fsc_fastai.callback.guided import LRPGuidedCallback, PublishedCANPass
from fsc_fastai.data.augment import CenterCrop
from fsc_fastai.data.block import EpisodeBlock
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.data.sampler import EpisodeSampler
from fsc_fastai.data.splitter import ClassSplitter
from fsc_fastai.deploy import FewShotClassifier, Preprocess
from fsc_fastai.explain import LRP, Epsilon, Gamma, GradientXInput
from fsc_fastai.learner.core import fsc_learner
from fsc_fastai.learner.results import format_table, plot_results
from fsc_fastai.methods import create_fsc_model
from tests.deploy.toys import classifier, examples
from tests.learners import hue_loaders, novel_image, silent, write_hues
from tests.methods.toys import METHODS

EPISODES = dict(n_way=2, n_shot=1, n_query=2, n_episodes=2)


@pytest.fixture(scope='module')
def root(tmp_path_factory): return write_hues(tmp_path_factory.mktemp('hues')/'hues', n=6)


def loaders(root, **kwargs): return EpisodeDataLoaders.from_folder(root, **EPISODES, **kwargs)


def learner(dls, tmp_path, method='proto', **kwargs): return silent(fsc_learner(dls, 'conv4', method, path=tmp_path, **kwargs))


def of_blocks(root, image_block=ImageBlock, **kwargs):
    settings = dict(item_tfms=Resize(20)) | kwargs
    return DataBlock((image_block, EpisodeBlock(**EPISODES)), get_items=get_image_files, get_y=parent_label,
                     splitter=ClassSplitter(.3), **settings).dataloaders(root/'base')


def deployed(learn, root, tmp_path):
    "What a learner answers before and after export, and as a saved classifier"
    learn.fit(1)
    image = novel_image(root)
    learn.set_support(root/'novel')
    learn.export('learner.pkl')
    FewShotClassifier.from_learner(learn).fit(root/'novel').save(tmp_path/'classifier', thumbnails=True)
    saved = FewShotClassifier.from_pretrained(tmp_path/'classifier')
    assert saved.explain(image).image.size == saved.preprocess.image(image).size
    return learn.predict(image)[2], load_learner(tmp_path/'learner.pkl').predict(image)[2], \
        torch.tensor(saved.predict_proba([image])[0]).float(), saved


# One size

SIZES = {
    'the size': (dict(size=24), 24), 'nothing': (dict(), 84), 'both': (dict(size=20, item_tfms=Resize(24)), 20),
    'what item_tfms make': (dict(item_tfms=Resize(24)), 24), 'a crop': (dict(item_tfms=RandomResizedCrop(24)), 24),
    'the size, with batch_tfms that cut nothing': (dict(size=24, batch_tfms=[Normalize.from_stats([.5]*3, [.2]*3)]), 24),
    'what batch_tfms cut out': (dict(batch_tfms=aug_transforms(size=24)), 24),
    'not square': (dict(size=(24, 32)), (24, 32)), 'item_tfms, not square': (dict(item_tfms=Resize((24, 32))), (24, 32)),
}


@pytest.mark.parametrize('kwargs,wanted', SIZES.values(), ids=SIZES)
def test_training_and_validation_see_one_size(root, kwargs, wanted):
    dls = loaders(root, **kwargs)
    assert dls.img_size == dls.valid.img_size == dls.test.img_size == wanted
    for dl in (dls.train, dls.valid, dls.test):
        height_width = (wanted, wanted) if isinstance(wanted, int) else wanted
        assert tuple(dl.one_batch().query_x.shape[-2:]) == height_width


@pytest.mark.parametrize('kwargs,message', [
    (dict(size=84, item_tfms=Resize(32)), 'size=84, but item_tfms bring images to 32×32 px'),
    (dict(size=32, item_tfms=Resize((32, 24))), 'item_tfms bring images to 32×24 px'),
    (dict(size=32, item_tfms=Resize(48), batch_tfms=aug_transforms(size=40)), 'images have 40×40 px'),
    (dict(item_tfms=Resize(24), batch_tfms=[CenterCrop(20)]), 'training sees images of 24×24 px .* validation of 20×20 px'),
    (dict(item_tfms=Resize(24), batch_tfms=[CenterCrop(32)]), r'CenterCrop\(32\) of images of 24×24 px'),
    (dict(size=0), 'size=0: at least 1'),
    (dict(size='84'), "size='84': wanted a whole number"), (dict(size=(1, 2, 3)), 'size=.*height, width'),
    (dict(size=8.5), 'size=8.5'),
    (dict(seed=None), 'seed=None: wanted a whole number'), (dict(seed=1.5), 'seed=1.5'), (dict(seed=True), 'seed=True'),
])
def test_sizes_that_contradict_and_wrong_types_are_refused_at_once(root, kwargs, message):
    with pytest.raises((ValueError, TypeError), match=message): loaders(root, **kwargs)


def test_wrong_arguments_everywhere(root):
    for make in (lambda: ClassSplitter(seed=None), lambda: EpisodeSampler([0, 1] * 9, 2, 1, 1, seed=1.5),
                 lambda: hue_loaders(root).valid.new(seed='0'), lambda: hue_loaders(root).valid.new(n_episodes=2.),
                 lambda: hue_loaders(root).valid.new(n_ways=3)):
        with pytest.raises(TypeError, match='(seed|n_episodes)=.*wanted a whole number|no argument n_ways'): make()


@pytest.mark.parametrize('method', ['relation', 'can'])
@pytest.mark.parametrize('kwargs', [dict(size=(20, 32)), dict(item_tfms=Resize((20, 32)))], ids=['size', 'item_tfms'])
def test_what_is_not_square_is_deployed(root, tmp_path, method, kwargs):
    learn = learner(loaders(root, **kwargs), tmp_path, method)
    answer, exported, from_bundle, saved = deployed(learn, root, tmp_path)
    torch.testing.assert_close(exported, answer)
    torch.testing.assert_close(from_bundle, answer, rtol=1e-4, atol=1e-5)
    assert saved.preprocess.size == (20, 32) and '20×32 px' in repr(saved) and saved.thumbnails('novel0')[0].size == (48, 48)
    assert learn.explain().query.shape[-2:] == (20, 32)


def test_onnx_of_what_is_not_square(tmp_path):
    pytest.importorskip('onnxruntime')
    known = FewShotClassifier(create_fsc_model('proto', 'conv4', img_size=(20, 32)), Preprocess((20, 32))).fit(*examples())
    assert (known.to_onnx(tmp_path/'onnx')/'encoder.onnx').exists()


def test_a_resize_in_the_batch_is_refused_in_words(root, tmp_path):
    "No tensor in the error; the remedy that it names works for both"
    learn = learner(of_blocks(root, item_tfms=Resize(24), batch_tfms=aug_transforms(size=20)), tmp_path)
    for deploy, known_of in ((partial(learn.set_support, root/'novel'), lambda learn: learn.classifier()),
                             (partial(FewShotClassifier.from_learner, learn), lambda known: known)):
        with pytest.raises(ValueError, match=r'Resize.*preprocess=Preprocess\(') as e: deploy()
        assert 'tensor' not in str(e.value) and len(str(e.value)) < 500
        assert known_of(deploy(preprocess=Preprocess(20))).preprocess == Preprocess(20)
    assert learn.predict(novel_image(root))[2].sum() == pytest.approx(1)


# Grey

@pytest.mark.parametrize('method', ['relation', 'proto'])
@pytest.mark.parametrize('stats', [[], [Normalize.from_stats([.5], [.2])]], ids=['bare', 'normalised'])
def test_grey_images_train_and_deploy(root, tmp_path, method, stats):
    learn = learner(of_blocks(root, ImageBlock(PILImageBW), batch_tfms=stats), tmp_path, method)
    answer, exported, from_bundle, saved = deployed(learn, root, tmp_path)
    torch.testing.assert_close(exported, answer)
    torch.testing.assert_close(from_bundle, answer, rtol=1e-4, atol=1e-5)
    assert saved.model.encoder.in_chans == len(saved.preprocess.mean) == 1
    assert learn.evaluate(root/'novel', n_episodes=2, n_query=2).accuracy.item() >= 0
    assert learn.explain().query.shape[2:] == (1, 20, 20)
    learn.explain().plot()
    with pytest.raises(ValueError, match='in_chans=3, but the loaders give images of 1 channels'):
        learner(learn.dls, tmp_path, method_kwargs=dict(in_chans=3))


# A number of classes that varies

def test_episodes_of_two_or_three_classes(root, tmp_path):
    dls = EpisodeDataLoaders.from_folder(root, size=20, **EPISODES | dict(n_way=(2, 3), n_episodes=12))
    learn = learner(dls, tmp_path)
    learn.fit(1)
    table = learn.evaluate(n_episodes=3, n_query=(1, 2))
    shown = format_table(table)
    assert '2–3' in shown and '42' in shown and '3×1–2' in shown  # (1/2 + 1/3)/2
    ax = plot_results({'ours': table})
    assert ax.get_title().startswith('2–3-way') and ax.lines[-1].get_ydata()[0] == pytest.approx(100 * 5/12)
    p, y, decoded = learn.get_preds(with_decoded=True)
    assert p.shape == (len(y), 3) and p.sum(1).numpy() == pytest.approx(1)
    ways = [len(b.classes) for b in dls.valid]
    assert (p[:, 2] == 0).sum() == sum(4 for way in ways if way == 2) > 0 and 3 in ways
    of_episodes = zip(*(o.split([2*w for w in ways]) for o in (decoded, y)), strict=True)
    accuracies = [(d == t).float().mean() for d, t in of_episodes]
    assert np.mean(accuracies) == pytest.approx(learn.validate()[1])
    known = FewShotClassifier.from_learner(learn)
    assert known.model.config['n_way'] == 3
    assert known.calibrate(root/'base', n_shot=1, n_query=2, n_episodes=2).accuracy >= 0  # 3 classes, as many as in training
    assert FewShotClassifier.from_pretrained(known.save(tmp_path/'saved')).model.n_way == 3
    with pytest.raises(TypeError, match=r'n_way=\(2, 3\): wanted a whole number'): known.calibrate(root/'base', n_way=(2, 3))


def test_a_graph_network_knows_one_number_of_classes(root, tmp_path):
    for way in (dict(n_way=(2, 3)), dict(n_way=3, val_n_way=2)):
        dls = EpisodeDataLoaders.from_folder(root, size=20, **EPISODES | way)
        with pytest.raises(ValueError, match='one number of classes'): learner(dls, tmp_path, 'gnn')
    with pytest.raises(ValueError, match=r'n_way=\(2, 3\)'): create_fsc_model('gnn', 'conv4', n_way=(2, 3), img_size=20)


# A loss, an explainer and rules of the user's own

LOSSES = {'flat': CrossEntropyLossFlat(), 'function': nn.functional.cross_entropy,
          'module': nn.CrossEntropyLoss(label_smoothing=.1)}


@pytest.mark.parametrize('method', METHODS)
@pytest.mark.parametrize('loss_func', LOSSES.values(), ids=LOSSES)
def test_a_loss_of_the_users_takes_scores(root, tmp_path, method, loss_func):
    dls = hue_loaders(root, **EPISODES)
    for cbs in (None, LRPGuidedCallback(xi=.5, lam=.5)):
        learn = learner(dls, tmp_path, method, loss_func=loss_func, cbs=cbs)
        learn.fit(1)
        batch = dls.valid.one_batch()
        torch.testing.assert_close(learn.validate(dl=[batch])[0], loss_func(learn.model(*batch[:3]).detach(), batch[3]).item())


def test_the_methods_own_loss_still_takes_all(root, tmp_path):
    learn = learner(hue_loaders(root, **EPISODES), tmp_path, 'can', loss_func=CrossEntropyLossFlat())
    learn.fit(1)
    learn.loss_func = learn.model.default_loss()
    learn.fit(1)
    assert isinstance(learn.model.train()(*learn.dls.train.one_batch()[:3]), tuple)
    guided = LRPGuidedCallback(second_pass=PublishedCANPass())
    learn = learner(learn.dls, tmp_path, 'can', loss_func=CrossEntropyLossFlat(), cbs=guided)
    with pytest.raises(ValueError, match='leave out loss_func or second_pass'): learn.fit(1)


EXPLAINERS = {'a number': lambda model, f_p: torch.rand(1), 'too few': lambda model, f_p: GradientXInput()(model, f_p)[:, :, :1],
              'no tensor': lambda model, f_p: 0.}


@pytest.mark.parametrize('explainer', EXPLAINERS.values(), ids=EXPLAINERS)
def test_an_explainer_gives_a_number_for_each_feature(root, tmp_path, explainer):
    learn = learner(hue_loaders(root, **EPISODES), tmp_path, cbs=LRPGuidedCallback(explainer=explainer))
    with pytest.raises(ValueError, match='returned relevance of shape .* the processed features have'): learn.fit(1)
    with pytest.raises(ValueError, match='returned relevance of shape .* the processed features have'):
        learn.explain(explainer=explainer)


@pytest.mark.parametrize('method', ['relation', 'proto'])
def test_a_rule_for_no_layer_is_named(method):
    known = classifier(method).fit(*examples())
    with pytest.raises(ValueError, match="'relation_module.layer1.*' of a Composite selects no layer"):
        known.explain(examples()[0][0], LRP(composite={'relation_module.layer1.*': Gamma()}))
    assert known.explain(examples()[0][0], LRP(composite={'encoder.*': Gamma(), nn.Conv2d: Gamma(), 0: Epsilon()})).relevance


# No validation set

def test_classes_are_held_out_where_there_is_no_validation_set(tmp_path):
    root = write_hues(tmp_path/'hues', (('train', 8), ('test', 3)), n=6)
    with pytest.warns(UserWarning, match='no validation set .* 20 % of the training classes'): dls = loaders(root, size=20)
    sets = [{dl.vocab[c] for c in dl.labels} for dl in (dls.train, dls.valid, dls.test)]
    assert [len(o) for o in sets] == [6, 2, 3] and not sets[0] & sets[1] and sets[2] == {'test0', 'test1', 'test2'}
    learn = learner(dls, tmp_path)
    learn.fit(1)
    assert all(np.isfinite(learn.validate()))
    with pytest.raises(ValueError, match='below val or valid, to validate on'):
        DataBlock((ImageBlock, EpisodeBlock(**EPISODES)), get_items=get_image_files, get_y=parent_label,
                  splitter=ClassSplitter.by_folder(), item_tfms=Resize(20)).dataloaders(root)


def test_training_without_validation_is_asked_for(tmp_path):
    root = write_hues(tmp_path/'hues', n=6)
    learn = learner(loaders(root/'base', size=20, splitter=ClassSplitter(0.)), tmp_path)
    learn.fit(1)
    for ask in (learn.validate, learn.explain, learn.show_results, learn.get_preds):
        with pytest.raises(ValueError, match='no images to .*validat'): ask()
