"Export of a classifier to ONNX: one graph from images to features, one from features and support to scores"
from __future__ import annotations

import json
import warnings
from os import PathLike
from pathlib import Path
from typing import cast

import numpy as np
import torch
from fastcore.basics import patch
from safetensors.torch import save
from torch import Tensor, nn
from torch.func import functional_call

from ..extras import extra
from ..files import atomic_write
from ..methods.head import Head, free_norms
from .classifier import FewShotClassifier
from .strangeness import Known

__all__ = ['head_inputs']

TOLERANCE = 1e-4


class _Scores(nn.Module):
    "A head without its chunks, of which a graph needs none"
    def __init__(self, head: Head):
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor: return self.head.scores(features)


class _ScoresOf(nn.Module):
    "Scores from features and all that `fit` fixed, as named inputs"
    def __init__(self, head: Head):
        super().__init__()
        self.scores, self.names = _Scores(head), list(head_inputs(head))

    def forward(self, features: Tensor, *fixed: Tensor) -> Tensor:
        return functional_call(self.scores, {f'head.{k}': v for k, v in zip(self.names, fixed)}, (features,))


def head_inputs(head: Head) -> dict[str, Tensor]:
    "What `fit` fixed, by name: prototypes or support features, their one-hot labels, and statistics of batch norms"
    statistics = {f'model.{name}.running_{kind}': getattr(norm, f'running_{kind}')
                  for name, norm in free_norms(head.model).items() for kind in ('mean', 'var')}
    return {'support': head.support, 'member': head.member, **statistics}


@patch
@torch.no_grad()
def to_onnx(
    self: FewShotClassifier,
    folder: str | PathLike, # Created if needed
    check: bool = True, # Compare with torch in onnxruntime, for other numbers of classes, examples and images
) -> Path:
    """Write `encoder.onnx` (images → features), `head.onnx` (features, support, … → scores) and `support.safetensors`.

    The last has the other inputs of the head, so that examples may change without a new export. `strangeness.safetensors` has
    the class means for strangeness. `onnx.json` has classes, preprocessing, temperature and both thresholds. `fsc_fastai.light`
    classifies with these files, without torch. Needs the extra `onnx`. Raises `NotFittedError` without examples, `ImportError`
    without the extra, `ValueError` for a model whose scores are not finite or that has no graph, and `RuntimeError` if
    onnxruntime and torch differ by more than 1e-4.
    """
    folder, classes = Path(folder), self.support.classes
    if self.model.no_graph: raise ValueError(f'to_onnx: {self.model.no_graph}')
    self._check_finite('to_onnx')
    with extra('onnx'): import onnx, onnxruntime, onnxscript  # noqa: F401, E401, I001  only to know
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.zeros(2, *self.preprocess.shape, device=self.device)
    # clones, because the exporter takes the size of an input that is also a buffer from the buffer
    features, fixed = self.model.encode(images), {k: v.clone() for k, v in head_inputs(self.head).items()}
    _export(self.model.encoder, {'images': images}, 'features', folder/'encoder.onnx')
    _export(_ScoresOf(self.head), {'features': features, **fixed}, 'scores', folder/'head.onnx',
            any_way=_any_way(self.head, len(classes)))
    for name, tensors in dict(support=fixed, strangeness=dict(means=cast(Known, self._known).means)).items():
        data = save({k: v.cpu().contiguous() for k, v in tensors.items()})
        with atomic_write(folder/f'{name}.safetensors') as part: part.write_bytes(data)
    values = dict(classes=classes, preprocess=vars(self.preprocess), temperature=self.temperature, reject=self.reject,
                  limit=self.limit, inputs=['features', *fixed])
    text = json.dumps(values, indent=1, ensure_ascii=False)
    with atomic_write(folder/'onnx.json') as part: part.write_text(text, encoding='utf-8')
    if check: _check(self, folder)
    return folder


def _export(module: nn.Module, inputs: dict[str, Tensor], output: str, path: Path, any_way: bool = True) -> None:
    "One graph, whose numbers of images, of support rows and of classes are free"
    free = {'images': (0,), 'features': (0,), 'support': (0,), 'member': (0, 1) if any_way else (0,)}
    dims = [dict.fromkeys(free.get(name, ()), torch.export.Dim.DYNAMIC) for name in inputs]
    first, *others = dims  # `_ScoresOf` takes the others as *fixed
    with warnings.catch_warnings(), atomic_write(path) as part:
        warnings.simplefilter('ignore')  # of the exporter, about itself
        torch.onnx.export(module.eval(), tuple(inputs.values()), part, input_names=list(inputs), output_names=[output],
                          dynamic_shapes=(first, tuple(others)) if others else (first,), dynamo=True, external_data=False,
                          verbose=False)


def _check(classifier: FewShotClassifier, folder: Path) -> None:
    "Compare both graphs with torch, for other numbers of images, classes and examples than they were exported with"
    import onnxruntime
    encoder, scorer = (onnxruntime.InferenceSession(folder/name, providers=['CPUExecutionProvider'])
                       for name in ('encoder.onnx', 'head.onnx'))
    random = torch.Generator().manual_seed(0)
    shape, n_way = classifier.preprocess.shape, len(classifier.support.classes)
    head = classifier.model.head(statistics='support').cpu()
    for n, way, shot in ((1, n_way, 1), (3, n_way + _any_way(classifier.head, n_way), 4)):
        images = torch.randn(n, *shape, generator=random)
        features = head.model.encode(images)
        _compare('encoder.onnx', features, encoder.run(None, {'images': images.numpy()})[0])
        maps = head.model.encode(torch.randn(way * shot, *shape, generator=random))
        head.fit(maps, torch.eye(way).repeat(shot, 1))
        inputs = {k: v.numpy() for k, v in {'features': features, **head_inputs(head)}.items()}
        _compare('head.onnx', head(features), scorer.run(None, inputs)[0])


def _any_way(head: Head, n_way: int) -> bool:
    "Can the head tell more classes apart than these?"
    return head.problem(n_way + 1) is None


def _compare(name: str, wanted: Tensor, found: np.ndarray) -> None:
    difference = (wanted - torch.from_numpy(found)).abs().max() / wanted.abs().max().clamp(min=1)
    if not difference <= TOLERANCE:
        raise RuntimeError(f'{name} differs from torch by {difference:.1e} (at most {TOLERANCE}): another version of torch or '
                           'onnxruntime may do better, or export with check=False if this is good enough')
