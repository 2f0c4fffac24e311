import json
import os
import random
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fsc_fastai.inference import BundleError, FewShotClassifier, Preprocess
from fsc_fastai.inference.checks import file_hash
from fsc_fastai.models import create_fsc_model

from .toys import COLOURS, METHODS, classifier, examples, picture

CONV = 'model.encoder.body.stages.{}.conv.weight'
QUERIES = [picture(c, 40) for c in COLOURS]


@pytest.fixture(scope='module')
def saved(tmp_path_factory): return classifier().fit(*examples()).save(tmp_path_factory.mktemp('bundle'))


@pytest.fixture
def bundle(saved, tmp_path):
    "A copy of a saved classifier to spoil, its JSON as a dictionary, and a function that writes this back"
    for f in saved.iterdir(): (tmp_path/f.name).write_bytes(f.read_bytes())
    values = json.loads((tmp_path/'classifier.json').read_text())
    return tmp_path, values, lambda: (tmp_path/'classifier.json').write_text(json.dumps(values))


def tensors_of(folder): return next(folder.glob('tensors-*.safetensors'))


def replace_tensors(folder, values, tensors):
    "Other tensors under a hash that is right: what a liar would write"
    tensors_of(folder).unlink()
    save_file(tensors, folder/'part')
    values['sha256'] = file_hash(folder/'part')
    (folder/'part').rename(folder/f'tensors-{values["sha256"]}.safetensors')
    (folder/'classifier.json').write_text(json.dumps(values))


@pytest.mark.parametrize('method', METHODS)
def test_answers_are_the_same_after_save_and_load(method, tmp_path):
    known = classifier(method).fit(*examples())
    known.reject, known.temperature = .3, 2.5
    loaded = FewShotClassifier.from_pretrained(known.save(tmp_path/'a'/'b'))
    assert np.array_equal(loaded.predict_proba(QUERIES), known.predict_proba(QUERIES))
    assert (loaded.reject, loaded.temperature, loaded.preprocess) == (.3, 2.5, known.preprocess)
    assert loaded.predict_batch(QUERIES) == known.predict_batch(QUERIES)
    # and it can go on learning
    if method != 'gnn': assert 'more' in loaded.add_class(QUERIES[0], 'more').classes_


def test_the_folder_holds_two_plain_files_and_thumbnails_only_on_request(tmp_path):
    known = classifier().fit(*examples())
    known.save(tmp_path)
    assert sorted(f.name.split('-')[0] for f in tmp_path.iterdir()) == ['classifier.json', 'tensors']
    assert 'support.thumbnails' not in load_file(tensors_of(tmp_path))
    assert FewShotClassifier.from_pretrained(tmp_path).thumbnails('red') == []
    known.save(tmp_path, thumbnails=True)
    assert len(list(tmp_path.iterdir())) == 2
    assert [o.size for o in FewShotClassifier.from_pretrained(tmp_path).thumbnails('red')] == [(48, 48)] * 3
    values = json.loads((tmp_path/'classifier.json').read_text())
    assert values['model']['arch'] == 'conv4' and values['preprocess']['size'] == 32
    assert values['classes'] == sorted(COLOURS) and values['libraries'].keys() == {'fsc_fastai', 'torch', 'timm'}


def test_a_classifier_without_examples_saves_its_model(tmp_path):
    known = FewShotClassifier.from_pretrained(classifier().save(tmp_path))
    assert not known.fitted and known.fit(*examples()).score(QUERIES, list(COLOURS)) == 1


def test_a_backbone_of_ones_own_is_passed_in_again(tmp_path):
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())
    known = FewShotClassifier(create_fsc_model('proto', body, img_size=32), Preprocess(32)).fit(*examples())
    with pytest.raises(BundleError, match='pass `arch=` that module'): FewShotClassifier.from_pretrained(known.save(tmp_path))
    other = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())
    loaded = FewShotClassifier.from_pretrained(tmp_path, arch=other)
    assert np.array_equal(loaded.predict_proba(QUERIES), known.predict_proba(QUERIES))
    plain = FewShotClassifier(type(known.model)(known.model.encoder), Preprocess(32))
    with pytest.raises(ValueError, match='use create_fsc_model'): plain.save(tmp_path)


def test_a_save_that_is_cut_off_leaves_the_old_bundle(saved, tmp_path, monkeypatch):
    known = classifier().fit(*examples())
    known.save(tmp_path)
    before, changed = known.predict_proba(QUERIES), classifier(seed=1).fit(*examples())
    real, calls = os.replace, []
    for cut in range(2):
        def interrupted(a, b, cut=cut):
            calls.append(b)
            if len(calls) > cut: raise KeyboardInterrupt
            real(a, b)
        calls.clear()
        monkeypatch.setattr(os, 'replace', interrupted)
        with pytest.raises(KeyboardInterrupt): changed.save(tmp_path)
        assert np.array_equal(FewShotClassifier.from_pretrained(tmp_path).predict_proba(QUERIES), before)
    monkeypatch.undo()
    changed.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2, 'what the interrupted ones left is gone'
    assert not np.array_equal(FewShotClassifier.from_pretrained(tmp_path).predict_proba(QUERIES), before)


def test_every_truncation_is_a_clear_error(bundle):
    folder, _, _ = bundle
    for f in (tensors_of(folder), folder/'classifier.json'):
        whole = f.read_bytes()
        for share in (0, .01, .3, .99):
            f.write_bytes(whole[:int(len(whole) * share)])
            with pytest.raises(BundleError, match=str(folder)): FewShotClassifier.from_pretrained(folder)
        f.write_bytes(whole)
    tensors_of(folder).unlink()
    with pytest.raises(BundleError, match='missing'): FewShotClassifier.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match='no classifier'): FewShotClassifier.from_pretrained(folder.parent)


def test_flipped_bits_and_swapped_tensors_are_noticed(bundle):
    folder, values, _ = bundle
    f = tensors_of(folder)
    whole = bytearray(f.read_bytes())
    whole[-1] ^= 1
    f.write_bytes(whole)
    with pytest.raises(BundleError, match='is corrupt'): FewShotClassifier.from_pretrained(folder)


@pytest.mark.parametrize('spoil, message', [
    (lambda t: t.update({CONV.format(0): t[CONV.format(1)].clone()}), 'has the shape'),
    (lambda t: t.pop(CONV.format(0)), '1 tensors are missing'),
    (lambda t: t.pop('support.features'), 'support.features'),
    (lambda t: t.update(more=torch.zeros(1)), '1 tensors are unknown, such as more'),
    (lambda t: t.update({'support.features': t['support.features'][:3]}), 'has the shape'),
    (lambda t: t.update({'support.features': t['support.features'].double()}), 'wanted torch.float32'),
    (lambda t: t['support.features'].fill_(float('nan')), 'not finite'),
])
def test_tensors_that_do_not_fit_are_refused_even_under_a_right_hash(bundle, spoil, message):
    folder, values, _ = bundle
    tensors = load_file(tensors_of(folder))
    spoil(tensors)
    replace_tensors(folder, values, tensors)
    with pytest.raises(BundleError, match=message): FewShotClassifier.from_pretrained(folder)


@pytest.mark.parametrize('change, message', [
    (dict(format=2), 'knows format 1'),
    (dict(sha256='../../../etc/passwd'), 'no SHA-256'),
    (dict(sha256='0' * 64), 'missing'),
    (dict(extra=1), 'missing or unknown'),
    (dict(labels=[0] * 15), 'labels are not positions'),
    (dict(labels=[0, 1, 2, 3, 99] * 3), 'labels are not positions'),
    (dict(classes=['b', 'a', 'c', 'd', 'e']), 'not sorted'),
    (dict(classes=['a', 1, 'c', 'd', 'e']), 'all text or all whole numbers'),
    (dict(temperature=-1), 'temperature=-1'),
    (dict(temperature=float('nan')), 'temperature'),
    (dict(reject=7), 'reject=7'),
    (dict(reject=True), 'reject is bool'),
    (dict(preprocess=dict(size=10**9)), 'size=1000000000'),
    (dict(preprocess=dict(size=32, std=[0, 1, 1])), 'std'),
    (dict(preprocess=dict(size='32')), 'preprocess: '),
    (dict(preprocess=dict(path='/etc/passwd')), 'path'),
    (dict(model={}), 'method'),
    (dict(model=dict(method='os.system', arch='conv4')), 'No method'),
    (dict(model=dict(method='proto', arch='local-dir:/tmp')), 'no backbone by name'),
    (dict(model=dict(method='proto', arch='hf-hub:some/model')), 'no backbone by name'),
    (dict(model=dict(method='proto', arch='conv4', pretrained='/etc/passwd')), 'unknown argument pretrained'),
    (dict(model=dict(method='proto', arch='conv4', encoder_kwargs=dict(checkpoint_path='x'))), 'may not set checkpoint_path'),
    (dict(model=dict(method='proto', arch='conv4', encoder_kwargs=dict(pretrained_cfg={}))), 'may not set pretrained_cfg'),
    (dict(model=dict(method='proto', arch='conv4', encoder_kwargs=dict(width=10**12))), 'not a plain value in range'),
    (dict(model=dict(method='proto', arch='conv4', encoder_kwargs=dict(act='/lib/x.so'))), 'not a plain value in range'),
    (dict(model=dict(method='proto', arch='conv4', img_size=10**4)), 'wanted 1 to 4096'),
    (dict(model=dict(method='relation', arch='conv4', img_size=32, hidden=16000)), 'tensors are missing'),
    (dict(model=dict(method='proto', arch='conv4', encoder_kwargs=dict(nonsense=1))), 'can not be built'),
    (dict(model=dict(method='proto', arch='resnet18', img_size=32)), 'tensors are'),
    (dict(model=dict(method='can', arch='conv4', img_size=32, n_classes=-3)), 'can not be built'),
])
def test_json_that_lies_is_refused(bundle, change, message):
    folder, values, write = bundle
    values.update(change)
    write()
    with pytest.raises(BundleError, match=message): FewShotClassifier.from_pretrained(folder)


@pytest.mark.parametrize('text', ['', 'null', '[]', '"text"', '{"format": 1}', '[' * 100_000, '{"a": NaN}', '\udcff'])
def test_any_other_text_is_refused(bundle, text):
    folder, _, _ = bundle
    (folder/'classifier.json').write_bytes(text.encode('utf-8', 'surrogateescape'))
    with pytest.raises(BundleError, match=str(folder)): FewShotClassifier.from_pretrained(folder)


def test_random_damage_never_ends_otherwise(bundle):
    "Bytes and values changed at random: the answer is the old one, or `BundleError`"
    folder, values, write = bundle
    rng, known = random.Random(0), FewShotClassifier.from_pretrained(folder)
    before, junk = known.predict_proba(QUERIES[:1]), [None, -1, 1e300, '', '../x', [], {}, True, 'ä' * 70, [[1]], 10**30]
    paths = [(k,) for k in values] + [(k, o) for k in ('model', 'preprocess', 'libraries') for o in values[k]]
    for _ in range(60):
        spoilt = json.loads(json.dumps(values))
        *outer, last = rng.choice(paths)
        (spoilt[outer[0]] if outer else spoilt)[last] = rng.choice(junk)
        text = bytearray(json.dumps(spoilt).encode())
        if rng.random() < .3: text[rng.randrange(len(text))] = rng.randrange(256)
        (folder/'classifier.json').write_bytes(text)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: FewShotClassifier.from_pretrained(folder).predict_proba(QUERIES[:1])
            except BundleError: continue
    write()
    assert np.array_equal(FewShotClassifier.from_pretrained(folder).predict_proba(QUERIES[:1]), before)


def test_other_versions_of_the_libraries_are_told(bundle):
    folder, values, write = bundle
    values['libraries']['timm'] = '0.4.12'
    write()
    with pytest.warns(UserWarning, match=r'saved with timm 0\.4\.12'): FewShotClassifier.from_pretrained(folder)


def test_nothing_is_unpickled(bundle, monkeypatch):
    import pickle
    monkeypatch.setattr(pickle, 'Unpickler', None)
    monkeypatch.setattr(torch, 'load', None)
    assert FewShotClassifier.from_pretrained(bundle[0]).fitted
