import builtins
import json

import numpy as np
import onnxruntime
import pytest
from safetensors.numpy import load_file
from torch import nn

from fsc_fastai.deploy import NotFittedError
from fsc_fastai.deploy import onnx as exporter

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


def test_a_difference_is_an_error():
    with pytest.raises(RuntimeError, match='head.onnx differs from torch by'):
        exporter._compare('head.onnx', exporter.torch.ones(2, 3), np.ones((2, 3), np.float32) + .01)
    with pytest.raises(RuntimeError, match='differs'):
        exporter._compare('head.onnx', exporter.torch.ones(2, 3), np.full((2, 3), np.nan, np.float32))


def test_needs_examples_and_the_extra(tmp_path, monkeypatch):
    with pytest.raises(NotFittedError): classifier().to_onnx(tmp_path)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith('onnx'): raise ModuleNotFoundError(name, name=name)
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, '__import__', without)
    with pytest.raises(ImportError, match=r'fsc_fastai\[onnx\]'): classifier().fit(*examples()).to_onnx(tmp_path)
