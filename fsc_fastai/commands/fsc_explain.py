"`fsc_explain`: heatmaps of what speaks for and against each class"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
from pathlib import Path

from fastcore.script import call_parse

from ..data.readers import read_folder
from ..learner.results import save_figure
from .common import learner_from, plain_errors

__all__ = ['fsc_explain']


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
