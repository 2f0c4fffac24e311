"`fsc_deploy`: a classifier of a learner and a few examples of each class"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
from pathlib import Path

from fastcore.script import call_parse

from ..deploy import FewShotClassifier
from .common import is_bundle, learner_from, load_classifier, plain_errors, printable

__all__ = ['fsc_deploy']


@call_parse
def fsc_deploy(
    learner: str, # File that `fsc_train` or `learn.export` wrote (a pickle: it executes what it holds); or folder of a bundle
    support: Path, # Folder with a folder of example images per class
    out: Path = Path('classifier'), # Folder to write; a classifier that is there is replaced
    reject: float | None = None, # Below this probability an image is none of the classes; default: never
    thumbnails: bool = False, # Keep small pictures of the examples, for the web page
    adapt: str | None = None, # Adaptation to the examples: pa, pmf, finetune:steps=50, …
) -> None:
    """Make a classifier for `fsc_classify` and `fsc_serve` from a learner and a few examples of each class.

    It is plain data (JSON and safetensors) and executes nothing when it is loaded. A learner in a file is a pickle, which
    executes what its writer put into it: only load one that you trust. The folder of a classifier gives one with other examples.
    """
    def deploy() -> None:
        known = (load_classifier(learner) if is_bundle(learner) and adapt is None
                 else FewShotClassifier.from_learner(learner_from(learner), adapt=adapt))
        if reject is not None: known.reject = reject
        known.fit(support).save(out, thumbnails)
        shots = ', '.join(f'{printable(label)} ({n})' for label, n in known.shots_.items())
        print(f'wrote {out}/ with examples of {shots}')
    plain_errors(deploy)
