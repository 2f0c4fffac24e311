"Loaders, training and evaluation see images as pretrained weights know them, or are told that they do not"
import warnings

import pytest
import timm
import torch
from fastai.vision.all import Normalize, load_learner

from fsc_fastai.data.augment import MiddleResize, episode_transforms
from fsc_fastai.data.image_config import ImageConfig
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.deploy import FewShotClassifier, Preprocess
from fsc_fastai.encode import create_encoder
from fsc_fastai.learner.core import fsc_learner
from fsc_fastai.methods import ProtoNet

from ..encode.stub import ARCH, SIZE
from ..learners import hue_learner, hue_loaders, silent, write_hues

SMALL = dict(n_way=3, n_shot=2, n_query=3, n_episodes=2, device='cpu', verify=False)


@pytest.fixture(scope='module')
def state():
    torch.manual_seed(4)
    return timm.create_model(ARCH).state_dict()


@pytest.fixture
def like(hues): return EpisodeDataLoaders.from_folder(hues, arch=ARCH, **SMALL)


def test_loaders_are_as_the_weights_say(like):
    resize = next(t for t in like.valid.after_item.fs if isinstance(t, MiddleResize))
    assert tuple(resize.size) == (40, 40) and resize.method == 'crop' and resize.mode.name == 'BICUBIC'
    assert like.img_size == SIZE and like.statistics == ((.5, .5, .5), (.5, .5, .5))
    assert like.train.cache is not None, 'what does not change is kept'
    x = like.valid.one_batch()[0]
    assert float(x.max()) <= 1.001 and float(x.min()) >= -1.001, 'bytes, from −1 to 1'


def test_evaluation_deployment_and_a_bundle_keep_them(like, state, hues, tmp_path):
    learn = silent(fsc_learner(like, ARCH, ProtoNet, pretrained=state))
    wanted = Preprocess.from_backbone(ARCH)
    assert Preprocess.from_dls(learn.dls) == wanted
    assert FewShotClassifier.from_learner(learn).preprocess == wanted
    bundle = FewShotClassifier.from_learner(learn).save(tmp_path/'saved')
    assert FewShotClassifier.from_pretrained(bundle).preprocess == wanted
    domain = next(iter(learn.dls.as_domains({'novel': hues/'novel'}).values()))
    assert [t.mean.flatten().tolist() for t in domain.after_batch.fs if isinstance(t, Normalize)] == [[.5, .5, .5]]


def test_other_statistics_are_an_error_that_names_both_and_the_remedy(hues, state):
    dls = hue_loaders(hues, size=SIZE)
    with pytest.raises(ValueError, match=rf'{ARCH} .* mean \(0.5, 0.5, 0.5\), std \(0.5, 0.5, 0.5\), the loaders normalise by '
                       rf"mean \(0.485, .*from_folder\(…, arch='{ARCH}'\).*check_images=False"):
        fsc_learner(dls, ARCH, ProtoNet, pretrained=state)
    with pytest.raises(ValueError, match='normalise by'):
        fsc_learner(dls, ARCH, ProtoNet, pretrained=create_encoder(ARCH, state, SIZE))
    fsc_learner(dls, ARCH, ProtoNet, pretrained=state, check_images=False)
    fsc_learner(dls, ARCH, ProtoNet)  # random weights know no images
    fsc_learner(dls, ARCH, ProtoNet, pretrained=create_encoder(ARCH, img_size=SIZE))  # nor does a module of unknown origin


def test_another_size_is_told_and_an_error_where_it_is_fixed(hues, state, monkeypatch):
    dls = EpisodeDataLoaders.from_folder(hues, arch=ARCH, size=20, **SMALL)
    assert dls.img_size == 20
    encoder = create_encoder(ARCH, state, 20)
    fsc_learner(dls, ARCH, ProtoNet, pretrained=state)
    from fsc_fastai.learner.images import check_images
    with pytest.warns(UserWarning, match='trained on images of 32×32 px, the loaders give 20×20 px'):
        check_images(dls, encoder, of_timm=True)
    encoder.trained_on = ImageConfig(32, (.5,) * 3, (.5,) * 3, fixed=True)
    with pytest.raises(ValueError, match='32×32 px, the loaders give 20×20 px, and the size of this network is fixed'):
        check_images(dls, encoder)


def test_a_transformer_that_takes_every_size_has_none_that_is_fixed(hues):
    dls = EpisodeDataLoaders.from_folder(hues, arch='test_vit', size=32, **SMALL)
    assert ImageConfig.of('test_vit').fixed
    fsc_learner(dls, 'test_vit', ProtoNet, pretrained=timm.create_model('test_vit').state_dict())


def test_transforms_for_a_data_block_of_ones_own():
    item, batch = episode_transforms(images=ImageConfig.of(ARCH))
    assert tuple(item.size) == (40, 40) and batch[-1].mean.flatten().tolist() == [.5] * 3
    item, batch = episode_transforms()
    assert tuple(item.size) == (96, 96) and batch[0].size == 84


def test_too_few_images_say_how_many_and_what_to_do(tmp_path):
    root = write_hues(tmp_path/'few', (('', 3),), n=5)
    with pytest.raises(ValueError, match='Training takes 21 images of each class, of 5 classes to train on and 5 others to '
                       'validate on.*without training: FewShotClassifier.from_backbone.*fsc_deploy --arch'):
        EpisodeDataLoaders.from_folder(root, device='cpu')


@pytest.mark.parametrize('method, why', [
    ('relation', 'RelationNet compares by weights of its own'), ('proto', 'its encoder is random')])
def test_a_learner_that_nobody_has_trained_says_so(hues, method, why, tmp_path):
    learn = hue_learner(hues, method)
    del learn.logger  # a lambda, which no pickle takes
    learn.export((tmp_path/'export.pkl').absolute())
    learn.logger = lambda *args: None
    with pytest.warns(UserWarning, match=f'nobody has trained this learner: {why}.*from_backbone'):
        FewShotClassifier.from_learner(load_learner(tmp_path/'export.pkl'))
    with pytest.warns(UserWarning, match='nobody has trained'): learn.set_support(hues/'novel')
    with learn.no_bar(): learn.fit(1, 1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        FewShotClassifier.from_learner(learn)


def test_nothing_to_train_is_no_reason_to_warn(like, state):
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        FewShotClassifier.from_learner(silent(fsc_learner(like, ARCH, ProtoNet, pretrained=state)))
