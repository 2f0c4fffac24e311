"`fsc_demo`: train on Latin glyphs, plainly and guided by explanations, and test on scripts never seen"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
from pathlib import Path

import pandas as pd
from fastai.torch_core import set_seed
from fastcore.script import call_parse
from torch import Tensor, nn

from ..callback.guided import LRPGuidedCallback
from ..data.augment import episode_transforms
from ..data.glyphs import untar_glyph_domains, untar_glyphs
from ..data.loaders import EpisodeDataLoaders
from ..files import atomic_write
from ..learner.core import FSCLearner, fsc_learner
from ..learner.evaluate import compare
from ..learner.progress import plain_output
from ..learner.results import plot_results, save_figure
from ..methods import ProtoNet, RelationNet

__all__ = ['fsc_demo', 'pixel_learner']

UNSEEN = ['greek', 'cyrillic', 'canadian', 'braille', 'digits']


class PixelEncoder(nn.Module):
    "An encoder that learns nothing: the image itself, averaged to a small map"
    def __init__(self, size: int = 21): # Side of the map
        super().__init__()
        self.num_features, self.out_shape = 3, (3, size, size)

    def forward(self, x: Tensor) -> Tensor:
        "Images `(n, 3, height, width)` to maps `(n, 3, size, size)`"
        return nn.functional.adaptive_avg_pool2d(x, self.out_shape[1:])


def pixel_learner(
    dls: EpisodeDataLoaders, # Loaders of the episodes to classify
) -> FSCLearner:
    "A ProtoNet on raw pixels, which learns nothing: a trained model has to be better"
    return fsc_learner(dls, PixelEncoder(), ProtoNet, method_kwargs=dict(pool='flatten'))


def side_by_side(
    plain: pd.DataFrame, # Results of the plain learner, from `learn.evaluate`
    guided: pd.DataFrame, # Results of the guided learner on the same episodes
    pixels: pd.DataFrame, # Results on raw pixels
) -> str:
    "One table of all three as text: accuracy and paired difference in percent, with 95 % intervals over the episodes"
    def percent(numbers: pd.Series, table: pd.DataFrame, sign: str = '') -> list[str]:
        return [f'{100*o:{sign}.1f} ± {100*ci:.1f}' for o, ci in zip(numbers, table.ci95, strict=True)]
    change = compare(plain, guided)
    return pd.DataFrame({
        'domain': guided.domain, 'plain': percent(plain.accuracy, plain), 'guided': percent(guided.accuracy, guided),
        'guided − plain': percent(change.difference, change, '+'),
        'raw pixels': [f'{100*o:.1f}' for o in pixels.accuracy]}).to_string(index=False)


@call_parse
def fsc_demo(
    out: Path = Path('demo_out'), # Folder for the figures and the table
    seed: int = 0, # Seed of the weights and the episodes
    size: int = 32, # Side of the images in pixels
    epochs: int = 1, # Epochs with the whole model unfrozen, after one with the encoder frozen
    train_episodes: int = 60, # Training episodes per epoch
    pretrain_epochs: int = 8, # Epochs of pre-training the encoder before that
    n_episodes: int = 200, # Test episodes per domain
) -> None:
    """Train a RelationNet on Latin glyphs, plainly and guided by explanations, and test both on scripts never seen.

    Takes less than three minutes on two cores. Writes pictures of an episode, of the training curves, of the results and of
    heatmaps, the table as CSV, and the guided learner.
    """
    out.mkdir(parents=True, exist_ok=True)
    set_seed(seed, reproducible=True)

    print('Drawing letters of five scripts, once …', flush=True)
    unmirrored = episode_transforms(size, do_flip=False)[1]  # a mirrored letter is another letter
    dls = EpisodeDataLoaders.from_folder(untar_glyphs(n_images=30), n_way=5, n_shot=5, n_query=8, n_episodes=train_episodes,
                                         val_n_episodes=20, size=size, batch_tfms=unmirrored, seed=seed, verify=False)
    dls = dls.with_domains(untar_glyph_domains(UNSEEN, n_images=30), verify=False)
    dls.show_batch()
    save_figure(out/'episode.png')

    learners = dict(plain=fsc_learner(dls, 'conv4', RelationNet),
                    guided=fsc_learner(dls, 'conv4', RelationNet, cbs=LRPGuidedCallback()))
    first = learners['plain']
    print(f'\nPre-training the encoder: {pretrain_epochs} epochs of plain classification of Latin letters', flush=True)
    with plain_output(first): first.pretrain_encoder(pretrain_epochs)
    start, tables = {k: v.clone() for k, v in first.model.state_dict().items()}, {}
    for name, learn in learners.items():  # from the same weights, on the same episodes
        print(f'\nTraining a RelationNet, {name}: {1 + epochs} epochs of {train_episodes} episodes', flush=True)
        set_seed(seed, reproducible=True)
        learn.model.load_state_dict(start)
        with plain_output(learn): learn.fine_tune(epochs, pretrain_epochs=0)
        learn.recorder.plot_loss()
        save_figure(out/f'training_{name}.png')
        tables[name] = learn.evaluate(n_episodes=n_episodes)
    pixels = pixel_learner(dls).evaluate(n_episodes=n_episodes)

    print(f'''
Accuracy in % ± its 95 % interval over {n_episodes} episodes: 5 classes with 5 examples each.
`novel` are Latin letters that were not trained on. Chance is 20.

{side_by_side(**tables, pixels=pixels)}''')
    with atomic_write(out/'results.csv') as part:
        pd.concat([*tables.values(), pixels], keys=[*tables, 'raw pixels'], names=['model']).droplevel(1).to_csv(part)
    plot_results({**tables, 'raw pixels': pixels})
    save_figure(out/'results.png')
    learn.explain().plot()
    save_figure(out/'heatmaps.png')
    learn.export((out/'export.pkl').absolute())
    print(f'''
One seed of a short training says little of what explanations add; docs/results.md has five seeds.
Figures, table and the guided learner are in {out}/.

Where to go on, with a folder that has a folder of images for each class:
  fsc_train FOLDER --lrp                      train on your own images
  fsc_eval {out}/export.pkl FOLDER      test on classes that were never seen
  fsc_deploy {out}/export.pkl EXAMPLES  a classifier of your classes, for fsc_classify and fsc_serve
With five photographs of each class, without training:
  fsc_deploy --arch vit_small_patch14_dinov2.lvd142m EXAMPLES
Each has --help; README tells the same in Python.''')
