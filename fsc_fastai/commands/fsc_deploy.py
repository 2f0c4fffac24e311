"`fsc_deploy`: makes a classifier from a backbone or a learner, and a few examples of each class"
# Annotations are read by `call_parse` at run time, so this module has no `from __future__ import annotations`.
from pathlib import Path
from typing import Any

from fastcore.script import call_parse

from ..deploy import FewShotClassifier
from ..deploy.backbone import DEFAULT_HEAD
from .common import is_bundle, learner_from, load_classifier, plain_errors, printable

__all__ = ['fsc_deploy']


@call_parse
def fsc_deploy(
    *sources: str, # A learner and a folder of examples; with --arch only the folder. A learner is `fsc_train`'s file or a bundle
    arch: str | None = None, # Pretrained backbone to use instead of a learner: any of timm's names
    weights: str | None = None, # Weights of the backbone: a file (.pth, .safetensors) or hf-hub:owner/name; default: timm's
    head: str | None = None, # Classifier of features: lda, ridge, logistic, proto, cosine, or an adaptation; default: ridge
    pool: str = 'auto', # How the backbone pools its features: auto (as in its training), cls, mean or both
    size: int | None = None, # Side of the images in pixels; default: as the backbone was trained
    remap: bool = False, # Match the weights to the backbone's tensors by position, whatever their names
    out: Path = Path('classifier'), # Folder to write the classifier to; one that is already there is replaced
    reject: float | None = None, # An image whose largest probability is lower belongs to none of the classes; default: never
    keep: float | None = None, # Share of images of the classes to answer; stranger images belong to none. Default: answer all
    thumbnails: bool = False, # Save small pictures of the examples, for the web page
    adapt: str | None = None, # How to adapt to the examples: pa, pmf, finetune:steps=50, …
    half: bool = False, # Store matrices in half precision: half the size, answers differ in the third digit
) -> None:
    """Make a classifier for `fsc_classify` and `fsc_serve` from a backbone or a learner, and a few examples of each class.

    The examples are a folder with a folder of images per class. What is written is plain data (JSON and safetensors) and
    executes nothing when it is loaded. A learner in a file is a pickle, which executes what its writer put into it: only load one
    that you trust. If the learner is the folder of a saved classifier, the new classifier is the same with other examples.
    """
    def deploy() -> None:
        *learner, support = sources or ['']
        if len(learner) != (arch is None):
            raise ValueError(f'{len(sources)} names given: fsc_deploy LEARNER EXAMPLES, or fsc_deploy --arch NAME EXAMPLES')
        if arch is None and (weights or head or remap or size):
            raise ValueError('--weights, --head, --size and --remap are for a backbone: name it by --arch')
        known = _of_backbone() if arch is not None else _of_learner(str(learner[0]))
        if reject is not None: known.reject = reject
        if keep is not None: known.set_params(keep=keep)
        known.fit(support).save(out, thumbnails, half=half)
        shots = ', '.join(f'{printable(label)} ({n})' for label, n in known.shots_.items())
        written = sum(f.stat().st_size for f in out.iterdir() if f.is_file()) / 1e6
        print(f'wrote {out}/ ({written:.1f} MB) with examples of {shots}')

    def _of_backbone() -> FewShotClassifier:
        settings: dict[str, Any] = dict(pool=pool, size=size, remap=remap, adapt=adapt, head=head or DEFAULT_HEAD)
        known = FewShotClassifier.from_backbone(str(arch), weights, **settings)
        if (loaded := known.model.encoder.loaded) is not None: print(f'{printable(weights)}: {printable(loaded)}')
        return known

    def _of_learner(learner: str) -> FewShotClassifier:
        if is_bundle(learner) and adapt is None: return load_classifier(learner)
        return FewShotClassifier.from_learner(learner_from(learner), adapt=adapt)
    plain_errors(deploy)
