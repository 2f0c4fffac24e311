"Methods on features give the numbers of their published implementations, recorded in double precision"
import numpy as np
import pytest
import torch

from fsc_fastai.adapt.bdcspn import BDCSPN
from fsc_fastai.adapt.distribution_calibration import DistributionCalibration
from fsc_fastai.adapt.features import squared_distances
from fsc_fastai.adapt.label_propagation import propagate
from fsc_fastai.adapt.laplacian_shot import LaplacianShot
from fsc_fastai.adapt.linear import LDAHead, LogisticHead, RidgeHead
from fsc_fastai.adapt.pa import PA
from fsc_fastai.adapt.prototypes import TransductiveTuning, TunedPrototypes
from fsc_fastai.adapt.pt_map import PTMAP
from fsc_fastai.adapt.simple_shot import SimpleShot, SupportCentred
from fsc_fastai.adapt.tim import TIM, TIMADM
from fsc_fastai.adapt.tip_adapter import TipAdapter

from ..golden_files import golden, recorded

SINGLE = {'simpleshot': 1e-5, 'bdcspn': 1e-5, 'label_propagation': 1e-5, 'distribution_calibration': 1e-5, 'finetune': 1e-3,
          'pmf_scores': 1e-5, 'pmf_augment': 1e-5, 'guo_finetune': 1e-5, 'ata_finetune': 1e-5}


def cases(*names):
    "Every golden file of some names, in single and in double precision"
    files = [f for name in names for f in golden(f'{name}.npz')]
    params = [pytest.param(f, d, id=f'{f.stem}-{str(d)[-2:]}') for f in files for d in (torch.float32, torch.float64)]
    return pytest.mark.parametrize('path, dtype', params)


class Recorded:
    "The arrays of a file in one precision, and how near ours must be"
    def __init__(self, method, path, dtype):
        with np.load(path) as z: self.arrays = {k: z[k] for k in z.files}
        self.dtype, self.tol = dtype, 1e-5 if dtype == torch.float64 else SINGLE.get(method, 1e-4)
        if 'support_y' in self.arrays: self.y = self['support_y']
        if 'support' not in self.arrays: return
        self.support, self.query = self['support'], self['query']
        self.member = torch.eye(int(self.y.max()) + 1, dtype=dtype)[self.y]

    def __getitem__(self, key):
        value = torch.from_numpy(np.asarray(self.arrays[key]))
        return value.to(self.dtype) if value.is_floating_point() else value

    def has(self, key): return key in self.arrays
    def variants(self, what): return [k.removesuffix(f'.{what}') for k in self.arrays if k.endswith(f'.{what}')]

    def hp(self, variant):
        "Settings as Python numbers"
        start = f'{variant}.hp.'
        return {k.removeprefix(start): v.tolist() for k, v in self.arrays.items() if k.startswith(start)}

    def fit(self, method): return method.fit(self.support, self.y, self.query)

    def same(self, ours, key, tol=None):
        theirs, tol = self[key], tol or self.tol
        assert ours.shape == theirs.shape, f'{key}: {tuple(ours.shape)}, recorded {tuple(theirs.shape)}'
        atol = tol * float(theirs.abs().max()) if theirs.numel() else 0.
        torch.testing.assert_close(ours.to(theirs), theirs, rtol=tol, atol=atol, msg=lambda m: f'{key}: {m}')


@cases('simpleshot_*way_*shot')
def test_simple_shot(path, dtype):
    r = Recorded('simpleshot', path, dtype)
    for v in r.variants('scores'):
        fitted = r.fit(SimpleShot(treatment=v, centre=r['centre']))
        r.same(fitted.prototypes, f'{v}.prototypes')
        r.same(fitted(r.query), f'{v}.scores')
        if r.has(f'{v}.probabilities'): r.same(fitted(r.query).softmax(1), f'{v}.probabilities')
    for v in r.variants('distance'):
        method = SimpleShot(treatment=v.removeprefix('original_'), centre=r['centre'], similarity='euclidean')
        r.same(-r.fit(method)(r.query), f'{v}.distance')


@cases('bdcspn_*way_*shot')
def test_bdcspn(path, dtype):
    r = Recorded('bdcspn', path, dtype)
    for v in r.variants('scores'):
        fitted = r.fit(BDCSPN(treatment=v, centre=r['centre']))
        r.same(fitted.prototypes, f'{v}.rectified')
        r.same(fitted(r.query), f'{v}.scores')


LAPLACIAN = {'default': ('un', 'easyfsl'), 'config': ('l2', 'easyfsl'), 'strong': ('cl2', 'easyfsl'), 'original': ('cl2', 'no'),
             'original_un': ('un', 'no'), 'original_rect': ('cl2', 'original'), 'original_l2_rect': ('l2', 'original')}


@cases('laplacianshot_*way_*shot')
def test_laplacian_shot(path, dtype):
    r = Recorded('laplacianshot', path, dtype)
    for v in r.variants('scores'):
        treatment, rectify = LAPLACIAN[v]
        fitted = r.fit(LaplacianShot(treatment=treatment, centre=r['centre'], rectify=rectify, **r.hp(v)))
        if r.has(f'{v}.rectified'): r.same(fitted.details['prototypes'], f'{v}.rectified')
        for key in ('unary', 'affinity'): r.same(fitted.details[key], f'{v}.{key}')
        r.same(fitted(r.query), f'{v}.scores')
        if r.has(f'{v}.labels'): assert fitted(r.query).argmax(1).tolist() == r[f'{v}.labels'].tolist()


@cases('tim_*way_*shot')
def test_tim(path, dtype):
    r = Recorded('tim', path, dtype)
    for v in r.variants('scores') + [v for v in r.variants('logits') if v.startswith('gd')]:
        hp = r.hp(v)
        hp['treatment'] = 'l2' if hp.pop('normalised', 1) else 'un'
        if v.startswith('gd'): fitted = r.fit(TIM.published(**hp))
        else: fitted = r.fit(TIM(**hp))
        r.same(fitted.prototypes, f'{v}.prototypes')
        losses = fitted.details['losses']
        r.same(losses if len(r[f'{v}.losses']) == len(losses) else losses[[0, -1]], f'{v}.losses')
        r.same(fitted(r.query), f'{v}.logits' if v.startswith('gd') else f'{v}.scores')
        if r.has(f'{v}.probabilities'): r.same(fitted(r.query).softmax(1), f'{v}.probabilities')
    for v in r.variants('assignments'):
        fitted = r.fit(TIMADM(**r.hp(v)))
        for key in ('prototypes', 'assignments'): r.same(fitted.details[key], f'{v}.{key}')
        r.same(fitted(r.query), f'{v}.logits')
        r.same(fitted(r.query).softmax(1), f'{v}.probabilities')


@cases('ptmap_*way_*shot')
def test_pt_map(path, dtype):
    r = Recorded('ptmap', path, dtype)
    for v in r.variants('probabilities'):
        hp = r.hp(v)
        original, normalised = v.startswith('original'), hp.pop('normalised', 0)
        fitted = r.fit(PTMAP.published(**hp) if original else PTMAP(treatment='l2' if normalised else 'un', **hp))
        details = fitted.details
        r.same(details['first_plan'], f'{v}.first_plan')
        r.same(fitted(r.query), f'{v}.probabilities')
        if original:
            x = torch.cat([details['support'], details['query']])
            gram = x @ x.T
            if r.has(f'{v}.gram'): r.same(gram, f'{v}.gram')
            r.same(squared_distances(details['query'], details['prototypes']), f'{v}.distances')
        else:
            r.same(details['query'], f'{v}.transformed_query')
            r.same(details['prototypes'], f'{v}.prototypes')


@cases('pa_*way_*shot')
def test_pa(path, dtype):
    r = Recorded('pa', path, dtype)
    r.same(r.fit(PA(steps=0))(r.query), 'before.scores')
    for v in [v for v in r.variants('scores') if v != 'before']:
        fitted = r.fit(PA(similarity='euclidean' if v == 'l2' else 'cosine', **r.hp(v)))
        r.same(fitted.transform, f'{v}.transform')
        r.same(r.support @ fitted.transform.T, f'{v}.support')
        r.same(r.query @ fitted.transform.T, f'{v}.query')
        r.same(fitted.details['losses'], f'{v}.losses')
        r.same(fitted(r.query), f'{v}.scores')


@cases('finetune_*way_*shot', 'transductive_finetuning_*way_*shot')
def test_tuned_prototypes(path, dtype):
    r = Recorded(method := path.stem.rsplit('_', 2)[0], path, dtype)
    for v in r.variants('scores'):
        hp = r.hp(v)
        hp['treatment'] = 'l2' if hp.pop('normalised') else 'un'
        fitted = r.fit((TunedPrototypes if method == 'finetune' else TransductiveTuning)(**hp))
        tol = 1e-4 if v == 'few' and dtype == torch.float32 else None
        for ours, key in ((fitted.prototypes, 'prototypes'), (fitted.details['losses'], 'losses'), (fitted(r.query), 'scores')):
            r.same(ours, f'{v}.{key}', tol)


@cases('label_propagation_*way_*shot')
def test_label_propagation(path, dtype):
    r = Recorded('label_propagation', path, dtype)
    for v in r.variants('scores'): r.same(propagate(r.query, r['probabilities'], **r.hp(v)), f'{v}.scores')


@cases('tip_adapter_*way_*shot')
def test_tip_adapter(path, dtype):
    r = Recorded('tip_adapter', path, dtype)
    for v in r.variants('scores'):
        method = TipAdapter(text=None if v == 'cache_only' else r['text'], **r.hp(v))
        fitted = method.fit(r['views'].mean(0), r.y)
        r.same(fitted.keys.T, 'keys')
        r.same(fitted.cached(r.query), f'{v}.cache_logits')
        r.same(fitted(r.query), f'{v}.scores')


@cases('sklearn_heads_*way_*shot')
def test_linear_heads(path, dtype):
    r = Recorded('sklearn_heads', path, dtype)
    tol = 1e-4
    for v in r.variants('scores') + [v for v in r.variants('probabilities') if v.startswith('logistic')]:
        kind, setting = v.split('_')[:2]
        if kind == 'ridge': method = RidgeHead(alpha=float(setting), intercept=not v.endswith('nobias'))
        elif kind == 'lda': method = LDAHead(shrinkage=float(setting))
        elif setting == 'l2': method = LogisticHead(treatment='l2')
        else: method = LogisticHead(C=float(setting[1:]))
        scores = r.fit(method)(r.query)
        if r.has(f'{v}.scores'): r.same(scores, f'{v}.scores', tol)
        if r.has(f'{v}.probabilities'): r.same(scores.softmax(1), f'{v}.probabilities', tol)


@cases('distribution_calibration_*way_*shot')
def test_distribution_calibration(path, dtype):
    r = Recorded('distribution_calibration', path, dtype)
    method = lambda **hp: DistributionCalibration(base_means=r['base_means'], base_covariances=r['base_covariances'], **hp)
    for v in r.variants('means'):
        mean, covariance = method(**r.hp(v)).calibrated(method().tukey(r.support))
        r.same(mean, f'{v}.means')
        r.same(covariance, f'{v}.covariances')
    r.same(method().tukey(r.query), 'query_tukey')
    fitted = method().on_draws(method().tukey(r.support), r.member, r['draws'])
    r.same(fitted(r.query).softmax(1), 'classifier.probabilities', 1e-4)


@recorded('flor_proto_*.npz')
def test_support_centred(path):
    with np.load(path) as z: arrays = {k: torch.from_numpy(z[k]) for k in z.files if k[0] in 'zs'}
    for key in [k for k in arrays if k.startswith('z_')]:
        z, scores = arrays[key], arrays[key.replace('z_', 'scores_')]
        shots = int(key.split('_')[1])
        way = z.shape[0]
        fitted = SupportCentred().fit(z[:, :shots].flatten(0, 1), torch.arange(way).repeat_interleave(shots))
        torch.testing.assert_close(fitted(z[:, shots:].flatten(0, 1)), scores, rtol=1e-5, atol=1e-5 * float(scores.abs().max()))
