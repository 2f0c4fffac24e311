"The command line: `fsc_train`, `fsc_eval`, `fsc_explain`, `fsc_demo`"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
from pathlib import Path

from fastai.learner import load_learner
from fastcore.script import CliError, call_parse

from .callback.lrp import LRPGuidedCallback
from .data.glyphs import untar_glyph_domains, untar_glyphs
from .data.loaders import EpisodeDataLoaders
from .demo import format_table, run_demo
from .learner import fsc_learner

__all__ = ['fsc_train', 'fsc_eval', 'fsc_demo']


def _domains(paths) -> dict:
    "Folders by their names; the word `glyphs` stands for every embedded unseen domain"
    found: dict = {}
    for path in paths: found |= untar_glyph_domains() if path == 'glyphs' else {Path(path).name: Path(path)}
    return found


def _plain_errors(f):
    "Run `f`; what the user can mend is a line on the terminal, not a traceback"
    try: return f()
    except (ValueError, TypeError, OSError) as e: raise CliError(f'{type(e).__name__}: {e}') from e


@call_parse
def fsc_train(
    path: str, # Folder of class folders, or of base/val/novel folders of them; `glyphs` for the embedded Latin glyphs
    arch: str = 'resnet10', # Backbone: conv4, resnet10, resnet12, or any of timm's
    method: str = 'relation', # relation, can, gnn, proto or matching
    out: Path = Path('export.pkl'), # Where to write the trained learner
    epochs: int = 10, # Epochs with the whole model unfrozen
    pretrain_epochs: int = 20, # Epochs of encoder pre-training by plain classification first
    n_way: int = 5, # Classes an episode
    n_shot: int = 5, # Support images a class
    n_query: int = 16, # Queries a class
    n_episodes: int = 100, # Training episodes an epoch
    size: int = 84, # Side of the images in pixels
    lr: float = 2e-3, # Peak learning rate
    pretrained: bool = False, # Start from timm's weights for this backbone
    lrp: bool = False, # Explanation-guided training
    seed: int = 0, # Of weights and episodes
):
    """Train a few-shot learner on a folder of images and export it.

    The exported file is for `fsc_eval`, `fsc_explain` and fastai's `load_learner`.
    """
    from fastai.torch_core import set_seed
    def train():
        set_seed(seed)
        source = untar_glyphs() if path == 'glyphs' else Path(path)
        dls = EpisodeDataLoaders.from_folder(source, n_way=n_way, n_shot=n_shot, n_query=n_query, n_episodes=n_episodes,
                                             size=size, seed=seed)
        learn = fsc_learner(dls, arch, method, pretrained=pretrained, cbs=LRPGuidedCallback() if lrp else None)
        learn.fine_tune(epochs, lr, pretrain_epochs=0 if pretrained else pretrain_epochs)
        out.parent.mkdir(parents=True, exist_ok=True)
        learn.export(out.absolute())
        print(f'wrote {out}')
    _plain_errors(train)


@call_parse
def fsc_eval(
    learner: Path, # File that `fsc_train` or `learn.export` wrote
    *domains: str, # Folders with a folder of images per class; `glyphs` for the embedded unseen domains
    n_episodes: int = 2000, # Test episodes a domain
    n_way: int = 5, # Classes an episode
    n_shot: int = 5, # Support images a class
    n_query: int = 16, # Queries a class
    seed: int = 0, # The same seed draws the same episodes for every learner
    transductive: bool = False, # Let confident queries join the support set
    csv: Path = None, # Write the table here as well
):
    """Test a learner on domains that it has never seen: accuracy with its 95 % interval over the episodes.

    Prints a row a domain. Only load learners you trust: the file is a pickle.
    """
    def test():
        learn = load_learner(learner)
        table = learn.evaluate(_domains(domains or ['glyphs']), n_episodes=n_episodes, n_way=n_way, n_shot=n_shot,
                               n_query=n_query, seed=seed, transductive=transductive)
        print(format_table(table))
        if csv: table.to_csv(csv, index=False)
    _plain_errors(test)


@call_parse
def fsc_demo(
    out: Path = Path('demo_out'), # Folder for the figures and the table
    seed: int = 0, # Of weights and episodes
    epochs: int = 4, # Epochs of 100 episodes with the whole model unfrozen
    pretrain_epochs: int = 12, # Epochs of encoder pre-training first
    n_episodes: int = 600, # Test episodes a domain
):
    """Train a RelationNet on Latin glyphs and test it on scripts that it has never seen; about three minutes on two cores.

    Writes an episode, the training curve, the results and a heatmap as pictures, the table as CSV, and the learner.
    """
    run_demo(out, seed=seed, epochs=epochs, pretrain_epochs=pretrain_epochs, n_episodes=n_episodes)
