"`fsc_demo`: train on Latin glyphs, test on scripts never seen, beside chance and raw pixels"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
from pathlib import Path

from fastai.torch_core import set_seed
from fastcore.script import call_parse
from torch import Tensor, nn

from ..callback.guided import LRPGuidedCallback
from ..data.augment import episode_transforms
from ..data.glyphs import untar_glyph_domains, untar_glyphs
from ..data.loaders import EpisodeDataLoaders
from ..files import atomic_write
from ..learner.core import FSCLearner, fsc_learner
from ..learner.progress import plain_output
from ..learner.results import format_table, plot_results, save_figure
from ..methods import ProtoNet, RelationNet

__all__ = ['fsc_demo', 'pixel_learner']

UNSEEN = ['greek', 'cyrillic', 'canadian', 'braille', 'digits']


class PixelEncoder(nn.Module):
    "The image itself, averaged to a small map: what comparing raw pixels can do"
    def __init__(self, size: int = 21): # Side of the map
        super().__init__()
        self.num_features, self.out_shape = 3, (3, size, size)

    def forward(self, x: Tensor) -> Tensor:
        "Images `(n, 3, height, width)` to maps `(n, 3, size, size)`"
        return nn.functional.adaptive_avg_pool2d(x, self.out_shape[1:])


def pixel_learner(
    dls: EpisodeDataLoaders, # Whose episodes it is to classify
) -> FSCLearner:
    "A ProtoNet on raw pixels: the bar that learning has to clear"
    return fsc_learner(dls, PixelEncoder(), ProtoNet, method_kwargs=dict(pool='flatten'))


@call_parse
def fsc_demo(
    out: Path = Path('demo_out'), # Folder for the figures and the table
    seed: int = 0, # Of weights and episodes
    size: int = 48, # Side of the images in pixels
    epochs: int = 2, # Epochs of 60 episodes with the whole model unfrozen
    pretrain_epochs: int = 5, # Epochs of encoder pre-training first
    n_episodes: int = 300, # Test episodes per domain
) -> None:
    """Train a RelationNet on Latin glyphs and test it on scripts that it has never seen; about four minutes on two cores.

    Writes an episode, the training curve, the results and a heatmap as pictures, the table as CSV, and the learner.
    """
    out.mkdir(parents=True, exist_ok=True)
    set_seed(seed, reproducible=True)

    unmirrored = episode_transforms(size, do_flip=False)[1]  # a mirrored letter is another letter
    dls = EpisodeDataLoaders.from_folder(untar_glyphs(), n_way=5, n_shot=5, n_query=8, n_episodes=60, val_n_episodes=20,
                                         size=size, batch_tfms=unmirrored, seed=seed, verify=False)
    dls = dls.with_domains(untar_glyph_domains(UNSEEN), verify=False)
    learn = fsc_learner(dls, 'conv4', RelationNet, cbs=LRPGuidedCallback())
    dls.show_batch()
    save_figure(out/'episode.png')

    with plain_output(learn): learn.fine_tune(epochs, pretrain_epochs=pretrain_epochs)
    learn.recorder.plot_loss()
    save_figure(out/'training.png')

    table, pixels = learn.evaluate(n_episodes=n_episodes), pixel_learner(dls).evaluate(n_episodes=n_episodes)
    print(format_table(table, raw_pixels=list(pixels.accuracy)))
    with atomic_write(out/'results.csv') as part: table.assign(raw_pixels=pixels.accuracy).to_csv(part, index=False)
    plot_results({'LRP-RelationNet': table, 'raw pixels': pixels})
    save_figure(out/'results.png')
    learn.explain().plot()
    save_figure(out/'heatmaps.png')
    learn.export((out/'export.pkl').absolute())
    print(f'''
Figures, table and learner are in {out}/. Where to go on, with a folder that has a folder of images for each class:
  fsc_train FOLDER --lrp                      train on your own images
  fsc_eval {out}/export.pkl FOLDER      test on classes that were never seen
  fsc_deploy {out}/export.pkl EXAMPLES  a classifier of your classes, for fsc_classify and fsc_serve
Each has --help; README tells the same in Python.''')
