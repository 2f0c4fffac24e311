"`fsc_explain`: heatmaps of what speaks for and against each class"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
from pathlib import Path

import matplotlib.pyplot as plt
from fastcore.script import call_parse

from ..data.readers import read_folder
from ..explain.lrp import LRP
from .common import learner_from, plain_errors

__all__ = ['fsc_explain']


@call_parse
def fsc_explain(
    learner: str, # File that `fsc_train` or `learn.export` wrote (a pickle: it executes what it holds); or the folder of a bundle
    support: Path, # Folder with a folder of example images per class
    *images: str, # Images to classify and explain
    out: Path = Path('heatmaps.png'), # The picture to write; its ending gives the format: png, svg, pdf, …
    beside: bool = False, # Draw the heatmaps as computed, beside the image, instead of smoothed over it
    against: str | None = None, # A class: explain why an image belongs to each of the others and not to this one
    published: bool = False, # Use the rules of Sun et al. 2020 instead of the default ones, which are more faithful to pixels
    cmap: str = 'seismic', # Colours, by matplotlib's name; PuOr_r for the colour-blind
    device: str | None = None, # Where to compute: cpu, cuda, cuda:1, mps; default: a GPU if there is one
) -> None:
    """Draw which pixels of an image speak for (red) and against (blue) each class, by layer-wise relevance propagation.

    The classes are the folders of the support; they need not be those that the learner was trained on. A pickle executes what
    its writer put into it: only load those that you trust. A bundle, the folder of a saved classifier, executes nothing.
    """
    def explain():
        if not images: raise ValueError('no images to explain: fsc_explain LEARNER SUPPORT IMAGE [IMAGE …]')
        examples = read_folder(support)
        by_class: dict = {}
        for file, label in zip(examples.files, examples.labels): by_class.setdefault(label, []).append(file)
        explainer = LRP.published() if published else None
        found = learner_from(learner, device).explain(list(images), by_class, explainer=explainer, against=against)
        plt.close(found.plot(overlay=not beside, cmap=cmap, save=out))
        print(f'wrote {out}')
    plain_errors(explain)
