import json
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models.resnet import ResNet
from torch import nn

from fsc_fastai.deploy import BundleError, FewShotClassifier, Preprocess
from fsc_fastai.deploy.support import Support
from fsc_fastai.methods import ProtoNet, create_fsc_model, register_method

from .toys import COLOURS, METHODS, classifier, examples, picture

CONV = 'model.encoder.body.stages.{}.conv.weight'
PREPROCESS = dict(size=32, resize=36, fit='squish', mean=[.5, .5, .5], std=[.2, .2, .2])
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
    values['sha256'] = sha256((folder/'part').read_bytes()).hexdigest()
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


def test_the_folder_holds_two_plain_files_a_card_and_thumbnails_only_on_request(tmp_path):
    known = classifier().fit(*examples())
    known.save(tmp_path)
    assert sorted(f.name.split('-')[0] for f in tmp_path.iterdir()) == ['README.md', 'classifier.json', 'tensors']
    assert 'support.thumbnails' not in load_file(tensors_of(tmp_path))
    assert FewShotClassifier.from_pretrained(tmp_path).thumbnails('red') == []
    known.save(tmp_path, thumbnails=True)
    assert len(list(tmp_path.iterdir())) == 3
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
    assert len(list(tmp_path.iterdir())) == 3, 'what the interrupted ones left is gone'
    assert not np.array_equal(FewShotClassifier.from_pretrained(tmp_path).predict_proba(QUERIES), before)


def unfit(known, **values):
    for name, value in values.items(): setattr(known, name, value)


def first_weight(known): return next(known.model.parameters())


@pytest.mark.parametrize('spoil, message', [
    (lambda c: unfit(c, reject=95), 'reject=95: wanted a number from 0 to 1'),
    (lambda c: unfit(c, reject=float('nan')), 'reject=nan'),
    (lambda c: unfit(c, reject=np.bool_(True)), 'reject is bool'),
    (lambda c: unfit(c, temperature=10**400), 'temperature=1000'),
    (lambda c: first_weight(c).data.flatten()[:1].fill_(float('nan')), 'weight, so that its scores are not finite'),
    (lambda c: c.model.encoder.body.stages[0].norm.running_var.neg_(), 'running_var holds variances below 0'),
    (lambda c: c.model.config.update(n_way=[5, 2]), r'n_way=\[5, 2\]'),
    (lambda c: c.model.config.update(in_chans=4), 'in_chans=4: wanted 1 to 3'),
])
def test_what_could_not_be_loaded_is_not_saved(tmp_path, spoil, message):
    known = classifier().fit(*examples())
    known.save(tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    spoil(known)
    with pytest.raises(BundleError, match=f'not saved.*{message}'): known.save(tmp_path)
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


def test_what_can_be_saved_can_be_loaded(tmp_path):
    "A threshold of numpy, ways that were drawn in training, and more training classes than a byte or two can count"
    known = classifier(n_way=(3, 5), n_classes=100_000).fit(*examples())
    known.reject, known.temperature = np.float32(.25), torch.tensor(2.)
    loaded = FewShotClassifier.from_pretrained(known.save(tmp_path))
    assert (loaded.reject, loaded.temperature, loaded.model.n_way) == (.25, 2., 5)


@pytest.mark.parametrize('labels, message', [(['a', '\ud800a'], 'no valid text'), ([1, 1 << 63], 'more than 64 bits')])
def test_a_class_name_that_no_file_can_hold_is_refused_at_once(labels, message):
    with pytest.raises(ValueError, match=message): classifier().fit(examples()[0][:2], labels)


class Nearest(ProtoNet):
    "A method of one's own"


def test_a_method_of_ones_own_is_passed_in_again_or_registered(tmp_path):
    known = classifier(Nearest).fit(*examples())
    with pytest.warns(UserWarning, match=r'not a registered method.*method=Nearest'): known.save(tmp_path)
    with pytest.raises(BundleError, match='pass `method=` its class'): FewShotClassifier.from_pretrained(tmp_path)
    with pytest.raises(BundleError, match="its method is 'Nearest', but method=ProtoNet"):
        FewShotClassifier.from_pretrained(tmp_path, method=ProtoNet)
    loaded = FewShotClassifier.from_pretrained(tmp_path, method=Nearest)
    assert type(loaded.model) is Nearest and np.array_equal(loaded.predict_proba(QUERIES), known.predict_proba(QUERIES))
    register_method(Nearest)
    assert type(FewShotClassifier.from_pretrained(known.save(tmp_path)).model) is Nearest
    other = type('Nearest', (ProtoNet,), {})
    with pytest.raises(BundleError, match='the method called Nearest is another class'):
        classifier(other).fit(*examples()).save(tmp_path)


@pytest.mark.parametrize('config, message', [
    (dict(arch='vit_tiny_patch16_224', encoder_kwargs=dict(depth=300)), 'far more layers'),
    (dict(arch='resnet50', encoder_kwargs=dict(layers=[1000] * 4)), 'far more layers'),
    (dict(arch='conv4', img_size=4096), 'a tensor of 192 MB'),
])
def test_work_is_bounded_by_what_the_tensors_need(bundle, config, message):
    folder, values, write = bundle
    values['model'] = dict(method='proto', img_size=32) | config
    write()
    with pytest.raises(BundleError, match=message): FewShotClassifier.from_pretrained(folder)


def test_tensors_that_are_there_for_nothing_allow_no_more_work(bundle, monkeypatch):
    folder, values, _ = bundle
    values['model'] = dict(method='proto', arch='resnet50', img_size=224, encoder_kwargs=dict(layers=[30] * 4))
    monkeypatch.setattr(ResNet, 'forward_features', None)
    junk = {f'model.{i}': torch.zeros(1) for i in range(2900)}
    replace_tensors(folder, values, load_file(tensors_of(folder)) | junk)
    with pytest.raises(BundleError, match='[0-9]+ tensors are missing, such as model.encoder.body'):
        FewShotClassifier.from_pretrained(folder)
    values['model']['encoder_kwargs'] = dict(layers=[300] * 4)
    replace_tensors(folder, values, load_file(tensors_of(folder)))
    with pytest.raises(BundleError, match='far more layers'): FewShotClassifier.from_pretrained(folder)


def test_sizes_are_compared_before_work(bundle):
    folder, values, write = bundle
    values['preprocess'] |= dict(size=4096, resize=4096)
    write()
    with pytest.raises(BundleError, match='a tensor of [0-9]+ MB inside the model'): FewShotClassifier.from_pretrained(folder)
    values['preprocess'] |= dict(size=32, resize=36)
    n = 10_000
    values['classes'], values['labels'] = [f'{i:05}' for i in range(n)], list(range(n))
    write()
    with pytest.raises(BundleError, match='10000 examples of 10000 classes'): FewShotClassifier.from_pretrained(folder)
    with pytest.raises(ValueError, match='10000 examples of 10000 classes'):
        Support(torch.zeros(n, 1), tuple(range(n))).member  # noqa: B018  a property that computes


def test_a_sparse_file_is_refused_before_it_is_read(bundle, monkeypatch):
    folder, _, _ = bundle
    with tensors_of(folder).open('rb+') as f: f.truncate(4 << 30)
    monkeypatch.setattr('fsc_fastai.deploy.layout.sha256', None)
    with pytest.raises(BundleError, match='4,294,967,296 bytes, its header lists'): FewShotClassifier.from_pretrained(folder)


def test_the_tensor_file_is_opened_once(bundle, monkeypatch):
    "So that nobody swaps it between the check and the load"
    opened, real = [], Path.open
    monkeypatch.setattr(Path, 'open', lambda file, *args, **kwargs: opened.append(str(file)) or real(file, *args, **kwargs))
    FewShotClassifier.from_pretrained(bundle[0])
    assert [Path(f).suffix for f in opened if str(bundle[0]) in f] == ['.json', '.safetensors']


def test_every_truncation_and_flipped_bits_are_a_clear_error(bundle):
    folder, _, _ = bundle
    for f in (tensors_of(folder), folder/'classifier.json'):
        whole = f.read_bytes()
        for share in (0, .01, .3, .99):
            f.write_bytes(whole[:int(len(whole) * share)])
            with pytest.raises(BundleError, match=str(folder)): FewShotClassifier.from_pretrained(folder)
        f.write_bytes(whole)
    whole = bytearray(tensors_of(folder).read_bytes())
    whole[-1] ^= 1
    tensors_of(folder).write_bytes(whole)
    with pytest.raises(BundleError, match='is corrupt'): FewShotClassifier.from_pretrained(folder)
    tensors_of(folder).unlink()
    with pytest.raises(BundleError, match='missing'): FewShotClassifier.from_pretrained(folder)
    with pytest.raises(FileNotFoundError, match='no classifier'): FewShotClassifier.from_pretrained(folder.parent)


@pytest.mark.parametrize('spoil, message', [
    (lambda t: t.update({CONV.format(0): t[CONV.format(1)].clone()}), 'has the shape'),
    (lambda t: t.pop(CONV.format(0)), '1 tensors are missing'),
    (lambda t: t.pop('support.features'), 'support.features'),
    (lambda t: t.update(more=torch.zeros(1)), '1 tensors are unknown, such as more'),
    (lambda t: t.update({'support.features': t['support.features'][:3]}), 'has the shape'),
    (lambda t: t.update({'support.features': t['support.features'].double()}), 'wanted 3840 of torch.float32'),
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
    (dict(reject=7), 'reject=7'),
    (dict(reject=True), 'reject is bool'),
    (dict(temperature=1e-320), 'temperature=1e-320'),
    (dict(classes=['\ud800a', 'b', 'c', 'd', 'e']), 'classes'),
    (dict(preprocess={}), 'preprocess: fit, mean, resize, size, std missing'),
    (dict(model=dict(method='proto', arch='conv4', img_size=32, in_chans=4)), 'in_chans=4: wanted 1 to 3'),
    (dict(model=dict(method='proto', arch='conv4', img_size=32, n_way=[1, True])), 'n_way='),
    (dict(preprocess=PREPROCESS | dict(std=[0, 1, 1])), 'std'),
    (dict(preprocess=PREPROCESS | dict(size='32')), "preprocess: size='32'"),
    (dict(preprocess=PREPROCESS | dict(interpolation=['nearest'])), 'interpolation='),
    (dict(preprocess=PREPROCESS | dict(path='/etc/passwd')), 'path'),
    (dict(model={}), 'method'),
    (dict(model=dict(method='os.system', arch='conv4')), 'no method'),
    (dict(model=dict(method='proto', arch='local-dir:/tmp')), 'no backbone by name'),
    (dict(model=dict(method='proto', arch='hf-hub:some/model')), 'no backbone by name'),
    (dict(model=dict(method='proto', arch='conv4', pretrained='/etc/passwd')), 'unknown argument pretrained'),
    (dict(model=dict(method='proto', arch='conv4', encoder_kwargs=dict(checkpoint_path='x'))), 'may not set checkpoint_path'),
    (dict(model=dict(method='proto', arch='conv4', encoder_kwargs=dict(width=10**12))), 'not a plain value in range'),
    (dict(model=dict(method='proto', arch='conv4', encoder_kwargs=dict(act='/lib/x.so'))), 'not a plain value in range'),
    (dict(model=dict(method='proto', arch='conv4', img_size=10**4)), 'wanted 1 to 4096'),
    (dict(model=dict(method='relation', arch='conv4', img_size=32, hidden=16000)), 'tensors are missing'),
    (dict(model=dict(method='proto', arch='conv4', encoder_kwargs=dict(nonsense=1))), 'cannot be built'),
    (dict(model=dict(method='proto', arch='resnet18', img_size=32)), 'tensors are'),
    (dict(model=dict(method='can', arch='conv4', img_size=32, n_classes=-3)), 'n_classes=-3: wanted 0'),
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
