import json

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from fsc_fastai.deploy import FewShotClassifier, NotFittedError

from .toys import METHODS, classifier, examples, picture


def answers(folder, images):
    "Probabilities by onnxruntime alone"
    values = json.loads((folder/'onnx.json').read_text())
    encoder, head = (onnxruntime.InferenceSession(folder/name) for name in ('encoder.onnx', 'head.onnx'))
    features, = encoder.run(None, {'images': images})
    scores, = head.run(None, {'features': features, **load_file(folder/'support.safetensors')})
    p = np.exp((scores - scores.max(1, keepdims=True)) / values['temperature'])
    return p / p.sum(1, keepdims=True)


SLOW = ('can', 'matching')  # an export takes seconds


@pytest.mark.parametrize('method', [pytest.param(m, marks=[pytest.mark.slow] * (m in SLOW)) for m in METHODS])
def test_onnxruntime_answers_as_torch(method, tmp_path):
    "`to_onnx` itself compares with torch for other numbers of classes, examples and images"
    known = classifier(method, nn.Conv2d(3, 8, 3, 4)).fit(*examples())
    known.temperature = 2.
    known.to_onnx(tmp_path)
    images = [picture('red', i) for i in range(5)]
    wanted = known.predict_proba(images)
    assert np.allclose(answers(tmp_path, known.preprocess(images).numpy()), wanted, rtol=0, atol=1e-5)
    assert json.loads((tmp_path/'onnx.json').read_text())['classes'] == known.classes_.tolist()


@pytest.mark.parametrize('off', [.01, float('nan')])
def test_a_difference_is_an_error(monkeypatch, tmp_path, off):
    known = classifier('proto', nn.Conv2d(3, 8, 3, 4)).fit(*examples())

    class Off:
        "A runtime that computes a little else"
        def __init__(self, *args, **kwargs): pass
        def run(self, _, inputs): return [known.model.encode(torch.from_numpy(inputs['images'])).numpy() + off]
    monkeypatch.setattr(torch.onnx, 'export', lambda module, inputs, path, **kwargs: path.touch())
    monkeypatch.setattr(onnxruntime, 'InferenceSession', Off)
    with pytest.raises(RuntimeError, match='encoder.onnx differs from torch by'): known.to_onnx(tmp_path)


def test_needs_examples(tmp_path):
    with pytest.raises(NotFittedError): classifier().to_onnx(tmp_path)


def test_an_export_that_is_taken_for_a_saved_classifier_says_who_reads_it(tmp_path):
    (tmp_path/'onnx.json').write_text('{}')
    with pytest.raises(FileNotFoundError, match=r'to_onnx wrote it: python -m fsc_fastai\.light .* IMAGES'):
        FewShotClassifier.from_pretrained(tmp_path)
