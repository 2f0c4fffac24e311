"The command line: `fsc_train`, `fsc_eval`, `fsc_explain`, `fsc_reproduce`, `fsc_demo`"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
from pathlib import Path

from fastcore.script import call_parse

from ..callback.lrp_guided import LRPGuidedCallback
from ..data.glyphs import untar_glyph_domains, untar_glyphs
from ..data.loaders import EpisodeDataLoaders
from ..data.names import named_paths
from ..data.readers import read_folder
from ..files import atomic_write
from ..learner.core import fsc_learner
from ..learner.progress import plain_output
from ..learner.results import format_table, save_figure
from ..reproduce.cells import METHODS, PRESETS
from ..reproduce.table import run_table
from ..reproduce.table_data import folder_data
from .common import learner_from, plain_errors, printable_lines
from .demo import run_demo

__all__ = ['fsc_train', 'fsc_eval', 'fsc_explain', 'fsc_reproduce', 'fsc_demo']


def _domains(paths) -> dict:
    "Folders by their names; the word `glyphs` stands for every embedded unseen domain"
    glyphs = untar_glyph_domains() if 'glyphs' in paths else {}
    folders = named_paths([path for path in paths if path != 'glyphs'])
    if both := sorted(glyphs.keys() & folders.keys()):
        raise ValueError(f'{both[0]} is a glyph domain and the folder {folders[both[0]]}: rename the folder')
    return glyphs | folders


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
    bundle: Path | None = None, # Folder to write the same to as plain data; default: only the pickle
) -> None:
    """Train a few-shot learner on a folder of images and export it.

    The exported file is for `fsc_eval`, `fsc_explain`, `fsc_deploy` and fastai's `load_learner`. It is a pickle, which executes
    what it holds; a bundle is for the same commands, and executes nothing.
    """
    from fastai.torch_core import set_seed
    def train():
        set_seed(seed)
        source = untar_glyphs() if path == 'glyphs' else Path(path)
        dls = EpisodeDataLoaders.from_folder(source, n_way=n_way, n_shot=n_shot, n_query=n_query, n_episodes=n_episodes,
                                             size=size, seed=seed)
        learn = fsc_learner(dls, arch, method, pretrained=pretrained, cbs=LRPGuidedCallback() if lrp else None)
        with plain_output(learn): learn.fine_tune(epochs, lr, pretrain_epochs=0 if pretrained else pretrain_epochs)
        out.parent.mkdir(parents=True, exist_ok=True)
        learn.export(out.absolute(), bundle=bundle and bundle.absolute())
        print(f'wrote {out}' + (f' and {bundle}/' if bundle else ''))
    plain_errors(train)


@call_parse
def fsc_eval(
    learner: str, # File that `fsc_train` or `learn.export` wrote (a pickle: it executes what it holds); or folder of a bundle
    *domains: str, # Folders with a folder of images per class; `glyphs` for the embedded unseen domains
    n_episodes: int = 2000, # Test episodes a domain
    n_way: int = 5, # Classes an episode
    n_shot: int = 5, # Support images a class
    n_query: int = 16, # Queries a class
    seed: int = 0, # The same seed draws the same episodes for every learner
    transductive: bool = False, # Let confident queries join the support set
    adapt: str | None = None, # Adaptation to each support: pa, or pa:lr=0.1,steps=20; several are joined by +, as in none+pa+pmf
    resume: Path | None = None, # File to keep accuracies in, to go on after an interruption; for adaptations of the encoder
    csv: Path | None = None, # Write the table here as well
    device: str | None = None, # Where to compute: cpu, cuda, cuda:1, mps; default: a GPU if there is one
) -> None:
    """Test a learner on domains that it has never seen: accuracy with its 95 % interval over the episodes.

    Prints a row a domain. A pickle executes what its writer put into it: only load those that you trust. A bundle, the folder
    of a saved classifier, executes nothing.
    """
    def test():
        learn = learner_from(learner, device)
        with plain_output(learn):
            drawn = dict(n_way=n_way, n_shot=n_shot, n_query=n_query)
            # not as in training, for which a domain may have too few images
            tested = learn.dls.as_domains(_domains(domains or ['glyphs']), **drawn)
            rows = [None if name == 'none' else name for name in adapt.split('+')] if adapt else []
            table = learn.evaluate(tested, n_episodes=n_episodes, seed=seed, transductive=transductive, resume=resume,
                                   adapt=rows if len(rows) > 1 else next(iter(rows), None), **drawn)
        print(printable_lines(format_table(table)))
        if csv:
            with atomic_write(csv) as part: table.to_csv(part, index=False)
    plain_errors(test)


@call_parse
def fsc_explain(
    learner: str, # File that `fsc_train` or `learn.export` wrote (a pickle: it executes what it holds); or folder of a bundle
    support: Path, # Folder with a folder of example images per class
    *images: str, # Images to classify and explain
    out: Path = Path('heatmaps.png'), # The picture to write
    overlay: bool = False, # Draw the heatmaps over the grey image
    device: str | None = None, # Where to compute: cpu, cuda, cuda:1, mps; default: a GPU if there is one
) -> None:
    """Draw which pixels of images speak for (red) and against (blue) each class, by layer-wise relevance propagation.

    The classes are the folders of the support; they need not be those that the learner was trained on. A pickle executes what
    its writer put into it: only load those that you trust. A bundle, the folder of a saved classifier, executes nothing.
    """
    def explain():
        if not images: raise ValueError('no images to explain: fsc_explain LEARNER SUPPORT IMAGE [IMAGE …]')
        examples = read_folder(support)
        by_class: dict = {}
        for file, label in zip(examples.files, examples.labels): by_class.setdefault(label, []).append(file)
        learner_from(learner, device).explain(list(images), by_class).plot(overlay=overlay)
        out.parent.mkdir(parents=True, exist_ok=True)
        save_figure(out)
        print(f'wrote {out}')
    plain_errors(explain)


@call_parse
def fsc_reproduce(
    table: str, # table2, table3, table4, figure3, or controls of what relevance does
    preset: str = 'small', # small, paper, demo, photos (with --data), or tiny for a trial
    domains: str = 'glyphs', # `glyphs`; with --data the folders to test on, separated by commas, or `all`
    data: Path | None = None, # Folder with a folder per domain, as `prepare_domain` fills them; None: the embedded glyphs
    seen: str = 'mini_imagenet', # Folder in --data to train on
    out: Path = Path('results'), # Folder for trained models, results and the report
    seeds: int = 5, # Models of each kind
    shots: str = '5,1', # Shots, separated by commas
    methods: str = 'RN,CAN,GNN', # Only the models of these, separated by commas
    finished: bool = False, # Train nothing: report the models that are finished
) -> None:
    """Train and test every model of a table of the paper, and write the report with the paper's numbers beside ours.

    Killed at any moment and started again it goes on where it was; nothing is computed twice.
    """
    def reproduce():
        if preset not in PRESETS: raise ValueError(f'preset={preset!r}: one of {", ".join(PRESETS)}')
        if unknown := set(methods.split(',')) - set(METHODS):
            raise ValueError(f'methods={methods!r}: no {", ".join(sorted(unknown))}; choose of {", ".join(METHODS)}')
        known = PRESETS[preset].targets
        if data is None and (known or domains != 'glyphs'):
            raise ValueError(f'preset={preset!r} with domains={domains!r} needs --data, the folder that the domains are in')
        named = [] if domains in ('glyphs', 'all') else domains.split(',')
        command = f'fsc_reproduce {table} --preset {preset} --seeds {seeds} --shots {shots}'
        if data: command += f' --data {data.name} --seen {seen}' + (f' --domains {domains}' if named else '')
        if methods != ','.join(METHODS): command += f' --methods {methods}'
        source = folder_data(data, seen, named or known, PRESETS[preset].left_out) if data else None
        report = run_table(table, PRESETS[preset], source, out, seeds, [int(shot) for shot in shots.split(',')], command,
                           methods.split(','), train=not finished)
        print(f'wrote {report}')
    plain_errors(reproduce)


@call_parse
def fsc_demo(
    out: Path = Path('demo_out'), # Folder for the figures and the table
    seed: int = 0, # Of weights and episodes
    epochs: int = 2, # Epochs of 60 episodes with the whole model unfrozen
    pretrain_epochs: int = 5, # Epochs of encoder pre-training first
    n_episodes: int = 300, # Test episodes a domain
) -> None:
    """Train a RelationNet on Latin glyphs and test it on scripts that it has never seen; about four minutes on two cores.

    Writes an episode, the training curve, the results and a heatmap as pictures, the table as CSV, and the learner.
    """
    run_demo(out, seed=seed, epochs=epochs, pretrain_epochs=pretrain_epochs, n_episodes=n_episodes)
