"`fsc_train`: from a folder of images to a trained learner"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
from pathlib import Path

from fastai.torch_core import set_seed
from fastcore.script import call_parse

from ..callback.guided import LRPGuidedCallback
from ..data.glyphs import untar_glyphs
from ..data.loaders import EpisodeDataLoaders
from ..learner.core import fsc_learner
from ..learner.progress import plain_output
from .common import plain_errors

__all__ = ['fsc_train']


@call_parse
def fsc_train(
    path: str, # Folder of class folders, or of base/val/novel folders of them; `glyphs` for the embedded Latin glyphs
    arch: str = 'resnet10', # Backbone: conv4, resnet10, resnet12, or any of timm's
    method: str = 'relation', # relation, can, gnn, proto or matching
    out: Path = Path('export.pkl'), # Where to write the trained learner
    epochs: int = 10, # Epochs with the whole model unfrozen
    pretrain_epochs: int = 20, # Epochs of pre-training the encoder by plain classification; none with --pretrained
    n_way: int = 5, # Classes per episode
    n_shot: int = 5, # Support images per class
    n_query: int = 16, # Queries per class
    n_episodes: int = 100, # Training episodes per epoch
    drop_small: bool = False, # Leave out the classes with too few images, instead of an error
    size: int | None = None, # Side of the images in pixels; default: 84, or with --pretrained that of the weights
    lr: float = 2e-3, # Peak learning rate
    pretrained: bool = False, # Start from timm's weights for this backbone
    lrp: bool = False, # Guide the training by explanations
    seed: int = 0, # Seed of the weights and the episodes
    bundle: Path | None = None, # Folder to write the learner to as plain data too; default: only the pickle is written
) -> None:
    """Train a few-shot learner on a folder of images and export it.

    The exported file is for `fsc_eval`, `fsc_explain`, `fsc_deploy` and fastai's `load_learner`. It is a pickle, which executes
    what it holds. The commands read a bundle as well, which executes nothing.
    """
    def train():
        set_seed(seed)
        source = untar_glyphs() if path == 'glyphs' else Path(path)
        dls = EpisodeDataLoaders.from_folder(source, n_way=n_way, n_shot=n_shot, n_query=n_query, n_episodes=n_episodes,
                                             drop_small=drop_small, arch=arch if pretrained else None, size=size, seed=seed)
        learn = fsc_learner(dls, arch, method, pretrained=pretrained, cbs=LRPGuidedCallback() if lrp else None)
        with plain_output(learn): learn.fine_tune(epochs, lr, pretrain_epochs=0 if pretrained else pretrain_epochs)
        out.parent.mkdir(parents=True, exist_ok=True)
        learn.export(out.absolute(), bundle=bundle and bundle.absolute())
        print(f'wrote {out}' + (f' and {bundle}/' if bundle else ''))
    plain_errors(train)
