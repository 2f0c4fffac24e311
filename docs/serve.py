"The picture of the web page in README: `python -m docs.serve LEARNER`, such as the one of `make demo`; needs Chromium"
from __future__ import annotations

import sys
from pathlib import Path

from fastai.data.transforms import get_image_files
from fastai.learner import load_learner

from fsc_fastai.commands.serve import create_app
from fsc_fastai.data.glyphs import untar_glyphs
from fsc_fastai.deploy import FewShotClassifier
from tests.commands.browser import add_examples, classify, new_page, served

__all__ = ['picture']


def picture(
    learner: Path, # An exported learner
    file: Path, # Where to write the picture
) -> None:
    "Four syllabics of Canada by five examples each, and a new image of two of them"
    folder = untar_glyphs('canadian', n_classes=4, n_images=30, size=84, progress=False)
    classes = {o.name.split('_')[-1]: get_image_files(o).sorted() for o in folder.ls().sorted() if o.is_dir()}
    app = create_app(FewShotClassifier.from_learner(load_learner(learner)))
    with served(app) as address, new_page() as page:
        page.goto(address)
        for name, files in classes.items(): add_examples(page, name, files[:5])
        classify(page, [files[5] for files in list(classes.values())[1:3]])
        page.screenshot(path=file, full_page=True)


if __name__ == '__main__': picture(Path(sys.argv[1]), Path(__file__).with_suffix('.png'))
