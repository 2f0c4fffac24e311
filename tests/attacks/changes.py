"Ways in which somebody may change a saved classifier: each takes good bundles, a random generator and the folder to write to"
import json
import os
import struct
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save

from fsc_fastai.deploy import FewShotClassifier
from tests.attacks.images import mutated, pick
from tests.deploy.toys import classifier, examples

JUNK = [
    None, True, False, 0, 1, -1, 1.5, 32.0, 4096, 16384, 2**31, 2**63, 10**30, 10**400, -10**400, 1e308, -1e308, 1e-320, 1e39,
    float('nan'), float('inf'), -float('inf'), '', 'a', '../x', '/etc/passwd', 'hf-hub:a/b', 'os.system', '\ud800a', '\x1b[2J',
    '\x00', 'ä' * 70, 'a' * 100_000, [], {}, [[1]], [None], [0] * 65, [1000] * 4, [0, 1, 2], {'a': 1}, [float('inf')] * 3,
    [True] * 3, ['1'] * 3]
NUMBERS = [*(o for o in JUNK if isinstance(o, (int, float))), 2, 3, 5, 7, 64, 255, 1000, 4095, 4097, 16385, 1 << 24, 1e-6,
           1e-5, .5, 1e4, 1e9]
ARCHS = [
    'conv4', 'conv4np', 'conv6', 'resnet10', 'resnet12', 'resnet18', 'resnet50', 'vit_tiny_patch16_224',
    'vit_huge_patch14_224', 'swin_tiny_patch4_window7_224', 'swinv2_tiny_window8_256', 'convnext_atto', 'efficientnet_b0',
    'efficientnet_l2', 'mixer_b16_224', 'maxvit_tiny_tf_224', 'nfnet_f6', 'densenet121', 'regnety_002',
    'beit_base_patch16_224', 'vgg11', 'hrnet_w18_small', 'xcit_nano_12_p8_224', 'poolformer_s12', 'coat_lite_tiny',
    'levit_128s', 'tresnet_m', 'eva02_tiny_patch14_224', 'mobilenetv3_small_050', 'test_vit']
ARGUMENTS = [
    'depth', 'depths', 'layers', 'width', 'n_pool', 'embed_dim', 'num_heads', 'patch_size', 'window_size', 'mlp_ratio',
    'stem_width', 'stem_type', 'act_layer', 'norm_layer', 'block', 'drop_rate', 'drop_path_rate', 'global_pool',
    'class_token', 'reg_tokens', 'pos_embed', 'channels', 'cardinality', 'base_width', 'output_stride', 'num_classes',
    'pretrained', 'features_only', 'checkpoint_path', 'img_size', 'block_args', 'init_values', 'dynamic_img_size',
    'strict_img_size', 'scriptable', 'growth_rate', 'block_config', 'feat_size', 'in_chans', 'hidden', 'pool', 'distance',
    'scale', 'fce', 'n_features', 'loss', 'n_way', 'n_classes', 'encoder', 'self', 'pretrained_cfg', 'kwargs']


class Bundles:
    "Good bundles of several methods, in memory"
    def __init__(self, folder: Path):
        self.files = []
        images, labels = examples(2)
        tiny = dict(encoder_kwargs=dict(width=8))
        vit = dict(arch='vit_tiny_patch16_224', encoder_kwargs=dict(embed_dim=24, depth=2, num_heads=2, patch_size=8))
        models = [('proto', tiny), ('relation', dict(hidden=4, **tiny)), ('gnn', dict(n_features=8, width=8, **tiny)),
                  ('can', tiny), ('matching', tiny), ('proto', vit), ('proto', dict(arch='conv4np', size=33, **tiny))]
        for method, kwargs in models:
            known = classifier(method, **kwargs).fit(images, labels)
            known.reject, known.temperature = .3, 2.
            saved = known.save(folder/str(len(self.files)), thumbnails=len(self.files) % 2 == 0)
            self.files.append(((saved/'classifier.json').read_text(), next(saved.glob('tensors-*')).read_bytes()))

    def any(self, rng):
        values, tensors = pick(rng, self.files)
        return json.loads(values), tensors


def put(folder, values, tensors, name=None):
    "Write a bundle, under the hash of its tensors unless another name is given"
    folder.mkdir(parents=True)
    if isinstance(values, dict):
        if name is None: values['sha256'] = name = sha256(tensors).hexdigest()
        values = json.dumps(values).encode()
    (folder/'classifier.json').write_bytes(values)
    (folder/f'tensors-{name}.safetensors').write_bytes(tensors)
    return folder


def places(value, path=()):
    "Every place in a nested value, as the keys on the way, and what is there"
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for k, v in entries:
        yield (*path, k), v
        yield from places(v, (*path, k))


def changed(values, path, new):
    *outer, last = path
    for k in outer: values = values[k]
    values[last] = new


def field(good, rng, folder):
    "Give a value of the JSON another type or content, leave it out, or add an unknown one"
    values, tensors = good.any(rng)
    for _ in range(rng.integers(1, 3)):
        # each level of nesting as often, as there are many labels
        top = pick(rng, list(values) or ['format'])
        inner = [p for p, _ in places(values.get(top), (top,))] if rng.random() < .7 else []
        path = pick(rng, inner or [(top,)])
        act = rng.random()
        if act < .75: changed(values, path, pick(rng, JUNK))
        elif len(path) == 1 and act < .85: values.pop(top, None)
        else: values[str(pick(rng, JUNK))[:50]] = pick(rng, JUNK)
    keep = rng.random() < .5 and isinstance(values.get('sha256'), str)
    return put(folder, json.dumps(values).encode() if keep else values, tensors, sha256(tensors).hexdigest() if keep else None)


def number(good, rng, folder):
    "Make a number of the JSON extreme"
    values, tensors = good.any(rng)
    values['reject'] = .5
    numeric = [p for p, v in places(values) if isinstance(v, (int, float)) and not isinstance(v, bool)]
    few = [p for p in numeric if p[0] != 'labels'] * 5 + [p for p in numeric if p[0] == 'labels'][:5]
    for _ in range(rng.integers(1, 3)): changed(values, pick(rng, few), pick(rng, NUMBERS))
    return put(folder, values, tensors)


def model(good, rng, folder):
    "Name another method or backbone, or give it other arguments"
    values, tensors = good.any(rng)
    config = values['model']
    if rng.random() < .7: config['arch'] = pick(rng, ARCHS)
    methods = ['proto', 'relation', 'gnn', 'can', 'matching', 'RELATION', 'FewShotModel', 'Nearest']
    if rng.random() < .3: config['method'] = pick(rng, methods)
    if rng.random() < .5: config['img_size'] = int(pick(rng, [1, 8, 32, 33, 84, 224, 518, 1024, 4096]))
    if rng.random() < .3:
        size = int(pick(rng, [1, 16, 33, 84, 224, 600, 1024, 4096]))
        values['preprocess'] |= dict(size=size, resize=size)
    for _ in range(rng.integers(0, 4)):
        value = pick(rng, [*JUNK, 300, 1000, 16000, [1000] * 4, [16384] * 64, [2, 2, 2, 2], .5, 8, 12, 'avg', 'gelu', 'deep',
                             'flatten', 'cosine'])
        target = config['encoder_kwargs'] if rng.random() < .7 else config
        target[pick(rng, ARGUMENTS)] = value
    if rng.random() < .2: config['encoder_kwargs'] = {}
    if rng.random() < .1:  # tensors that are there only to allow more work
        config |= pick(rng, [dict(arch='vit_tiny_patch16_224', encoder_kwargs=dict(depth=300)),
                               dict(arch='resnet50', encoder_kwargs=dict(layers=[90] * 4))])
        tensors = save({f'model.{i}': torch.zeros(1) for i in range(int(rng.integers(100, 2500)))} | load(tensors))
    return put(folder, values, tensors)


def text(good, rng, folder):
    "Spoil the JSON as text: flip, cut or double it, write it in another encoding, nest it deeply or make it long"
    values, tensors = good.any(rng)
    name = values['sha256']
    whole = json.dumps(values, ensure_ascii=bool(rng.integers(2))).encode()
    act = rng.integers(8)
    if act < 5: whole = mutated(rng, whole, 3)
    elif act == 5:
        utf16 = whole.decode().encode('utf-16')
        whole = pick(rng, [whole + b'}', whole * 2, b'\xef\xbb\xbf' + whole, utf16, whole + b'\0' * 1000])
    elif act == 6:
        long = b'"' + b'a' * 5_000_000 + b'"'
        whole = pick(rng, [b'', b'null', b'[]', b'[' * 100_000, b'{"a":' * 100_000, b'1' * 5000, long])
    else: whole = b'{"format": 1, "classes": [' + b'"a",' * int(rng.integers(1, 5_000_000)) + b'"a"]}'
    return put(folder, whole, tensors, name)


def liar(good, rng, folder):
    "Change tensors and make the hash right again, as a liar would"
    values, data = good.any(rng)
    tensors = load(data)
    for _ in range(rng.integers(1, 3)):
        name = pick(rng, sorted(tensors))
        t, act = tensors[name], rng.integers(9)
        if act < 2:
            extreme = pick(rng, [float('nan'), float('inf'), -1., 0., 1e-38, 1e38, -1e38, 3e38, 1e20])
            tensors[name] = torch.full_like(t, extreme if t.is_floating_point() else 0)
        elif act == 2:
            kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
            tensors[name] = t.to(pick(rng, kinds))
        elif act == 3: tensors[name] = t.reshape(1, *t.shape) if rng.random() < .5 else t.flatten()
        elif act == 4: tensors[name] = t[:0] if t.ndim else t.reshape(1)
        elif act == 5: tensors[pick(rng, ['', 'x', '\x1b[2J', '../x', 'model.x', '__metadata', 'a' * 1000])] = tensors.pop(name)
        elif act == 6: tensors.pop(name) if len(tensors) > 1 else None
        elif t.is_floating_point() and t.numel():
            tensors[name] = t = t.clone()
            t.view(-1)[rng.integers(t.numel())] = pick(rng, [float('nan'), -float('inf'), -1e-30, 3e38, -3e38])
    return put(folder, values, save(tensors))


def header(good, rng, folder):
    "Change the list of tensors at the head of their file, under a right hash"
    values, data = good.any(rng)
    n = int.from_bytes(data[:8], 'little')
    entries, body = json.loads(data[8:8 + n]), data[8 + n:]
    name = pick(rng, sorted(set(entries) - {'__metadata__'}))
    act = rng.integers(8)
    if act == 0:
        offsets = [[0, 0], [0, 2**40], [-4, 0], [len(body), 0], ['a', 'b'], [1], None, 10**30]
        entries[name]['data_offsets'] = pick(rng, offsets)
    elif act == 1:
        shapes = [[2**31, 2**31], [-1], [0], [1.0], ['a'], None, [1] * 5000, 10**30, [2**62, 2]]
        entries[name]['shape'] = pick(rng, shapes)
    elif act == 2: entries[name]['dtype'] = pick(rng, ['F64', 'I8', 'BF16', 'X', '', None, 3, 'F8_E4M3', 'BOOL', 'C64'])
    elif act == 3: entries[name] = pick(rng, JUNK)
    elif act == 4: entries |= {f'junk{i}': dict(entries[name]) for i in range(rng.integers(1, 6000))}
    elif act == 5: entries['__metadata__'] = pick(rng, [None, {}, {'a': 1}, [], 'x' * 100_000])
    head = json.dumps(entries).encode()
    length = len(head)
    if act == 6: length = int(pick(rng, [0, 1, 2, length - 1, length + 1, 2**20, 2**31, 2**63, 2**64 - 1]))
    if act == 7: head, length = (o := pick(rng, [b'', b'{}', b'[]', b'null', b'{' * 200_000, b'\xff' * 8, b'{"a":1}'])), len(o)
    return put(folder, values, struct.pack('<Q', length) + head + body)


def content(good, rng, folder):
    "Cut, lengthen or flip the tensor file, or make it sparse, under the hash of the good one"
    values, data = good.any(rng)
    name, act = values['sha256'], rng.integers(5)
    whole = data + bytes(rng.integers(1, 5000)) if act == 0 else data if act == 1 else mutated(rng, data, 3)
    put(folder, json.dumps(values).encode(), whole, name)
    if act == 1: os.truncate(folder/f'tensors-{name}.safetensors', int(pick(rng, [len(whole) + 1, 1 << 30, 4 << 30, 1 << 40])))
    return folder


def swapped(good, rng, folder):
    "Put files of other bundles, links, devices or folders in the place of files"
    values, data = good.any(rng)
    other, foreign = good.any(rng)
    name, act = values['sha256'], rng.integers(9)
    put(folder, json.dumps(values).encode(), foreign if act == 0 else data, name)
    file = folder/pick(rng, ['classifier.json', f'tensors-{name}.safetensors'])
    if act == 1:
        another = put(folder.with_name(folder.name + '-'), other, foreign)
        (another/'classifier.json').replace(folder/'classifier.json')
    elif act == 2: (folder/'classifier.json').write_text(json.dumps(other | {'sha256': name}))
    elif act >= 3:
        file.unlink()
        target = pick(rng, ['/etc/passwd', '/dev/zero', '/dev/null', '/proc/self/mem', 'nowhere', file.name, '.', '/'])
        if act == 3: file.mkdir()
        elif act == 4: os.mkfifo(file)
        elif act < 8: file.symlink_to(target)
    return folder


def names(good, rng, folder):
    "Change the names of classes, or the name by which the JSON refers to the tensors"
    values, data = good.any(rng)
    n, act = len(values['classes']), rng.integers(5)
    odd = ['', ' ', '\ud800a', '\x1b[2J', '\u202eabc', 'a' * 100_000, '\n', '\x00', '<script>', '🐦', 'ä', '../..', "'; --"]
    if act == 0: values['classes'] = sorted({*values['classes'][1:], pick(rng, odd)})
    elif act == 1:
        whole = sorted(rng.choice([0, 1, -1, 2, 7, 10, 255], n, replace=False).tolist())
        values['classes'] = [*whole[:-1], pick(rng, [2**62, 2**63, 10**30, 10**400, True, 11.5, 256])]
    elif act == 2:
        classes = values['classes']
        values['classes'] = pick(rng, [classes[::-1], classes[:1] * n, classes[1:], [], [None] * n])
    elif act == 3:
        many = int(pick(rng, [6, 100, 4000, 5000, 20_000, 300_000]))
        values['classes'], values['labels'] = [f'{i:06}' for i in range(many)], list(range(many))
        if many <= 5000:
            tensors = load(data)
            repeated = {k: t[torch.arange(many) % len(t)] for k, t in tensors.items() if k.startswith('support')}
            data = save(tensors | repeated)
    else:
        digest = values['sha256']
        values['sha256'] = pick(rng, ['', '..', '../' * 10, 'A' * 64, '0' * 64, digest.upper(), digest + '\n', '/etc', '%s'])
        return put(folder, json.dumps(values).encode(), data, sha256(data).hexdigest())
    return put(folder, values, data)


def places_to_look(good, rng, folder):
    "A path or address that is no folder with a bundle; nothing may be asked for over a network"
    put(folder, *good.any(rng))
    return pick(rng, [folder/'x', folder.parent/'owner'/'name', 'owner/name', 'hf:/owner/name', 'HF://owner/name',
                        ' hf://a/b', 'https://a/b', folder/'classifier.json', '/dev/null', '', '\x00', 'a' * 5000,
                        str(folder) + '\n'])


def saving(good, rng, folder):
    "Spoil a classifier in memory and save it over a good one"
    known = FewShotClassifier.from_pretrained(put(folder, *good.any(rng)))
    act = rng.integers(5)
    scalars = [*NUMBERS, None, np.float32(.5), np.float64('nan'), np.bool_(True), 'a', torch.tensor(.5), torch.zeros(2), [.5]]
    if act == 0: known.reject = pick(rng, scalars)
    elif act == 1: known.temperature = pick(rng, scalars)
    elif act == 2: object.__setattr__(known.preprocess, pick(rng, ['size', 'resize', 'fit', 'mean', 'std']), pick(rng, JUNK))
    elif act == 3:
        name = pick(rng, ['method', 'arch', 'n_way', 'n_classes', 'img_size', 'in_chans', 'x'])
        known.model.config[name] = pick(rng, JUNK)
    else:
        t = pick(rng, [o for o in known.model.state_dict().values() if o.is_floating_point()])
        t.view(-1)[rng.integers(t.numel())] = pick(rng, [float('nan'), float('inf'), -1., 3e38])
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    try: return known.save(folder)
    except (ValueError, TypeError):
        after = {f.name: f.read_bytes() for f in folder.iterdir()}
        if after != before: raise AssertionError('a refused save changed the folder') from None
        raise


KINDS = {
    'a field of the JSON': field, 'an extreme number': number, 'another model': model, 'the JSON as text': text,
    'tensors that lie': liar, 'the header of the tensors': header, 'the content of the tensor file': content,
    'swapped files and links': swapped, 'names': names, 'no bundle there': places_to_look, 'spoilt, then saved': saving}
