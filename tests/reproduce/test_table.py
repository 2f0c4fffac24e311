"Tables as resumable runs, on few and small images"
import json
from dataclasses import asdict, replace
from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

from fsc_fastai.explain.baselines import GradientXInput
from fsc_fastai.learner.core import FSCLearner
from fsc_fastai.reproduce import jobs
from fsc_fastai.reproduce import run as runs
from fsc_fastai.reproduce import training as train
from fsc_fastai.reproduce.cells import LATER, PRESETS, Cell, guided_best, table_cells
from fsc_fastai.reproduce.curves import training_frame
from fsc_fastai.reproduce.figure import statistics_effects
from fsc_fastai.reproduce.paper import PUBLISHED, published
from fsc_fastai.reproduce.report import mean_and_ci, paired_effects, summarise, transductive_effects
from fsc_fastai.reproduce.table import run_table
from fsc_fastai.reproduce.table_data import folder_data
from tests.ranks import FORK

TINY = PRESETS['tiny']
ONE_EPOCH = replace(TINY, recipes={'RN': replace(TINY.recipes['RN'], epochs=1)})


def test_a_table_is_trained_once_and_reported(glyphs, tmp_path, monkeypatch):
    def run(): return run_table('table3', TINY, glyphs, tmp_path, 2, [1], 'fsc_reproduce table3')
    report = run()
    folder = report.parent
    assert folder == tmp_path/'glyphs'/'tiny'
    text = report.read_text()
    for word in ('LRP-GNN', 'greek', 'novel', '65.03 ± 0.54', '`fsc_reproduce table3`', '4 test episodes × 5 queries'):
        assert word in text
    results = {p: p.read_text() for p in folder.glob('cells/*/result.json')}
    assert len(results) == 4 and not list(folder.rglob('*.pt')) and not list(folder.rglob('*.part'))
    assert {p.name for p in folder.glob('table3*')} == {'table3.md', 'table3.csv', 'table3_effects.csv', 'table3.png'}
    monkeypatch.setattr(runs, 'train_cell', lambda *args: pytest.fail('trained twice'))
    assert run().read_text() == text
    assert {p: p.read_text() for p in folder.glob('cells/*/result.json')} == results


def test_side_by_side_a_table_has_the_same_numbers(glyphs, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, 'PROCESSES', FORK)
    alone, together = (run_table('table2', ONE_EPOCH, glyphs, tmp_path/str(n), 1, [1], 'a command', jobs=n) for n in (1, 2))
    assert together.read_text() == alone.read_text()
    files = [[p.name for p in sorted(report.parent.rglob('*')) if p.is_file()] for report in (alone, together)]
    assert files[0] == files[1] and sum('conv4' in name for name in files[0]) == 1
    with pytest.raises(ValueError, match='jobs=0: at least 1'): run_table('table2', ONE_EPOCH, glyphs, tmp_path, 1, [1], jobs=0)


def test_one_cell_that_fails_costs_no_other(glyphs, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, 'PROCESSES', FORK)
    cells = table_cells('table2', 1, [], [1])[:2]
    broken, whole = (runs.result_file(cell, tmp_path) for cell in cells)
    broken.parent.mkdir(parents=True)
    broken.with_name('model.safetensors').write_text('nothing')
    with pytest.raises(ValueError, match='model.safetensors is broken'): jobs.run_cells(cells, ONE_EPOCH, glyphs, tmp_path, 2)
    assert whole.exists() and not broken.exists()


def test_a_lost_result_is_computed_again_to_the_same_numbers(glyphs, tmp_path):
    cell = Cell('RN', 1, 0, lrp=True)
    first = runs.run_cell(cell, TINY, glyphs, tmp_path)
    for name in ('result.json', 'model.safetensors'): (tmp_path/'cells'/cell.key/name).unlink()
    assert json.dumps(runs.run_cell(cell, TINY, glyphs, tmp_path)) == json.dumps(first)
    assert {r['transductive'] for r in first['results']} == {False, True}


def test_the_numbers_are_those_of_evaluate(glyphs, tmp_path):
    cell = Cell('RN', 1, 0)
    result = runs.run_cell(cell, TINY, glyphs, tmp_path)
    learn: FSCLearner = runs.train_cell(cell, TINY.recipes['RN'], glyphs, tmp_path)
    for transductive in (False, True):
        table = learn.evaluate(n_way=5, n_shot=1, n_episodes=4, n_query=5, transductive=transductive)
        ours = {r['domain']: r['accuracy'] for r in result['results'] if r['transductive'] == transductive}
        assert ours == pytest.approx(dict(zip(table.domain, table.accuracy)))
    statistics = learn.feature_statistics().set_index('domain').to_dict('index')
    assert {r['domain']: r['statistics'] for r in result['results'] if 'statistics' in r} == {
        k: pytest.approx(v) for k, v in statistics.items()}


def test_figure3_compares_models_with_and_without_explanations(glyphs, tmp_path):
    report = run_table('figure3', TINY, glyphs, tmp_path, 1, [1], 'fsc_reproduce figure3')
    text = report.read_text()
    for word in ('LRP-RN', 'LRP-CAN', 'LRP-GNN', 'quantile difference', 'greek', 'novel'): assert word in text
    assert {p.name for p in report.parent.glob('figure3*')} == {'figure3.md', 'figure3.csv', 'figure3_effects.csv', 'figure3.png'}
    assert {p.name for p in (report.parent/'cells').iterdir()} == {
        f'{m}_5shot_seed0' for m in ('rn', 'lrp-rn', 'can', 'lrp-can', 'gnn', 'lrp-gnn')}


def test_table4_leaves_one_target_out():
    cells = table_cells('table4', 1, ['a', 'b'], [5])
    assert [c.model for c in cells] == ['RN', 'FT-RN', 'LRP-RN', 'LFT-RN', 'LFT-LRP-RN', 'LFT-RN', 'LFT-LRP-RN']
    assert [c.unseen for c in cells] == ['', '', '', 'a', 'a', 'b', 'b'] and len({c.key for c in cells}) == 7
    with pytest.raises(ValueError, match='table9'): table_cells('table9', 1, [])


def test_table4_is_reported_without_transduction(glyphs, tmp_path, monkeypatch):
    def run_cell(cell, *args):
        tested = [cell.unseen] if cell.unseen else ['novel', *glyphs.targets]
        return dict(model=cell.model, cell=asdict(cell), test=dict(n_query=5), results=[
            dict(domain=domain, transductive=t, accuracy=.5 + .01 * len(cell.model), right=[3, 4]) for domain in tested
            for t in (False, True) if not (t and cell.ft)])
    monkeypatch.setattr(jobs, 'run_cell', run_cell)
    (tmp_path/'glyphs'/'tiny').mkdir(parents=True)
    report = run_table('table4', TINY, glyphs, tmp_path, 1, [5], 'fsc_reproduce table4')
    text = report.read_text()
    assert '1 seed. ' in text and 'transductive inference' not in text and 'True' not in text and 'nan' not in text
    assert '| LFT-LRP-RN | 5 | False | – |' in text
    assert '| LFT-RN | LFT-LRP-RN | 5 | False | all unseen | +4.00 (± 0.00) | 1 |' in text


def test_lft_cell_is_tested_on_the_target_left_out(glyphs, tmp_path):
    result = runs.run_cell(Cell('RN', 1, 0, lrp=True, ft='lft', unseen='greek'), TINY, glyphs, tmp_path)
    assert {r['domain'] for r in result['results']} == {'greek'} and result['model'] == 'LFT-LRP-RN'


def test_later_ways_of_training_are_a_table(glyphs, tmp_path):
    recipe = replace(TINY.recipes['PN'], val_episodes=1, epochs=1, n_episodes=1)
    preset = replace(TINY, test_val=True, recipes={'PN': recipe})
    report = run_table('later', preset, glyphs, tmp_path, 1, [1], 'fsc_reproduce later')  # of PN alone, as its recipes are
    cells = sorted(p.parent.name for p in report.parent.glob('cells/*/result.json'))
    ways = [way.lower() for way in LATER]
    guided = [c for c in cells if c.startswith('lrp-') and c != 'lrp-pn_1shot_seed0']
    assert len(guided) == 1 and guided[0].removeprefix('lrp-').split('-')[0] in ways
    assert set(cells) - set(guided) == {f'{way}pn_1shot_seed0' for way in ('', 'lrp-', 'ft-', *(f'{way}-' for way in ways))}
    text, accuracies = report.read_text(), pd.read_csv(report.with_suffix('.csv'))
    assert '| PN | StyleAdv-PN | 1 |' in text and f'| LRP-{accuracies.model.iloc[-1].removeprefix("LRP-")} |' in text
    weights = {p.parent.name: p.read_bytes() for p in report.parent.glob('cells/*/model.safetensors')}
    assert len(set(weights.values())) == len(weights), 'each way trains another model'


def test_guidance_is_added_to_what_is_best_on_validation_classes():
    def result(later, seed, val, target, base='GNN'):
        rows = [dict(domain='val', accuracy=val), dict(domain='cars', accuracy=target)]
        return dict(cell=dict(base=base, shot=5, seed=seed, later=later), results=rows)
    results = [result('', 0, .9, .9), result('ATA', 0, .5, .3), result('ATA', 1, .7, .3), result('BSR', 0, .65, .8),
               result('BSR', 1, .5, .8), result('FLoR', 0, .2, .1, 'PN')]
    assert guided_best(results) == [Cell('GNN', 5, 0, lrp=True, later='ATA'), Cell('GNN', 5, 1, lrp=True, later='ATA'),
                                    Cell('PN', 5, 0, lrp=True, later='FLoR'), Cell('PN', 5, 1, lrp=True, later='FLoR')]
    assert guided_best([dict(r, results=r['results'][1:]) for r in results]) == []


def test_published_numbers():
    assert published('table2', 'LRP-CAN', 'CUB', 5, True) == (66.57, .43)
    assert published('table3', 'GNN', 'Cars', 5) == (42.59, .42)
    assert published('table4', 'LFT-LRP-RN', 'Plantae', 1) == (36.58, .40)
    assert published('table4', 'LFT-LRP-RN', 'miniImagenet', 1) is None
    assert [len(PUBLISHED[t]) for t in ('table2', 'table3', 'table4')] == [80, 20, 40]


def test_intervals_over_seeds_are_students():
    mean, half = mean_and_ci([1., 2., 3.])
    assert mean == 2 and half == pytest.approx(4.302653 / 3**.5, rel=1e-5)


def test_what_transduction_adds_is_paired_too():
    frame = pd.DataFrame([dict(model=model, shot=1, seed=seed, domain=domain, transductive=t, accuracy=.5 + .1 * seed + gain * t,
                               right=[], queries=5)
                          for model in ('RN', 'GNN') for seed in (0, 1) for t in (False, True) if model == 'RN' or not t
                          for domain, gain in (('seen', .04), ('x', .02), ('y', -.03))])
    frame.attrs['seen'] = ('seen',)
    effects = transductive_effects(frame)
    assert effects.domain.tolist() == ['seen', 'x', 'y', 'all unseen'] and set(effects.model) == {'RN, transductive'}
    assert effects.difference.tolist() == pytest.approx([4., 2., -3., -.5])
    assert transductive_effects(frame[frame.model == 'GNN']).empty


def test_effects_pair_the_seeds():
    row = dict(transductive=False, right=[])
    frame = runs.results_frame([dict(model=m, cell=dict(shot=5, seed=s), test=dict(n_query=4),
                                     results=[dict(domain=d, accuracy=a + s/10, **row)])
                                for m, a in (('RN', .5), ('LRP-RN', .52)) for s in (0, 1) for d in ('x',)])
    effects = paired_effects(frame)
    assert effects.difference.tolist() == pytest.approx([2., 2.]) and effects.ci95.tolist() == pytest.approx([0., 0.], abs=1e-9)
    assert effects.domain.tolist() == ['x', 'all unseen'] and summarise(frame).accuracy.tolist() == pytest.approx([55., 57.])


def test_statistics_change_against_the_baseline():
    values = {'RN': (2., 4.), 'LRP-RN': (1., 5.)}
    frame = pd.DataFrame([dict(model=m, seed=s, domain='x', variance=v * (s + 1), quantile_difference=q)
                          for m, (v, q) in values.items() for s in (0, 1)])
    effects = statistics_effects(frame)
    assert effects.statistic.tolist() == ['variance', 'quantile difference']
    assert effects.change.tolist() == pytest.approx([-50., 25.]) and effects.seeds.tolist() == [2, 2]
    assert effects.ci95_low.tolist() == pytest.approx(effects.change.tolist())  # the same ratio in every seed


def test_settings_that_make_no_table_are_refused(glyphs, tmp_path):
    with pytest.raises(ValueError, match='seeds=0'): run_table('table2', TINY, glyphs, tmp_path, 0)
    with pytest.raises(ValueError, match='shots'): run_table('table2', TINY, glyphs, tmp_path, 1, [])


def test_a_folder_that_lacks_domains_is_described(tmp_path):
    with pytest.raises(FileNotFoundError, match='no folder .*prepare_domain'): folder_data(tmp_path/'nowhere')
    (tmp_path/'mini_imagenet').mkdir()
    with pytest.raises(FileNotFoundError, match='no domain to test on beside mini_imagenet'): folder_data(tmp_path)
    with pytest.raises(FileNotFoundError, match='no folder cub, but mini_imagenet'): folder_data(tmp_path, targets=['cub'])


def test_a_single_seed_has_the_interval_of_its_paired_episodes():
    frame = runs.results_frame([dict(model=m, cell=dict(shot=5, seed=0), test=dict(n_query=4), results=[
        dict(domain=d, transductive=False, right=right, accuracy=sum(right) / 60) for d in ('x', 'y')])
        for m, right in (('RN', [10, 12, 8]), ('LRP-RN', [12, 12, 7]))])
    differences = 100 * np.array([2, 0, -1]) / 20
    x, _, both = paired_effects(frame).itertuples()
    assert x.difference == pytest.approx(differences.mean()) and np.isnan(x.ci95)
    assert x.test_ci95 == pytest.approx(1.96 * differences.std(ddof=1) / 3**.5)
    assert both.domain == 'all unseen' and both.test_ci95 == pytest.approx(x.test_ci95 / 2**.5)


def test_controls_are_paired_with_plain_and_with_explained_training():
    cells = table_cells('controls', 1, [], [5])
    assert [c.model for c in cells] == ['RN', 'LRP-RN', 'Shuffled-RN', 'Random-RN', 'Ones-RN', 'Gradient-RN',
                                        'LRP-RN λ=0.25', 'LRP-RN λ=0.5', 'LRP-RN λ=2']
    assert [c.model[-3:] for c in table_cells('controls', 1, [], [1])[-3:]] == ['.25', 'λ=1', 'λ=2']
    assert len({c.key for c in cells}) == len(cells) and all(c.key.isascii() for c in cells)
    frame = runs.results_frame([dict(model=c.model, cell=asdict(c), test=dict(n_query=4), results=[
        dict(domain='x', transductive=False, right=[], accuracy=.5 + k / 100)]) for k, c in enumerate(cells)])
    found = {(r.baseline, r.model): round(r.difference) for r in paired_effects(frame).itertuples() if r.domain == 'x'}
    assert found['RN', 'Shuffled-RN'] == 2 and found['Shuffled-RN', 'LRP-RN'] == -1 and found['RN', 'LRP-RN λ=2'] == 8
    assert len(found) == 1 + 2*4 + 3


@pytest.mark.parametrize('cell', table_cells('controls', 1, [], [1])[2:], ids=lambda c: c.model)
def test_a_control_is_trained_by_its_guide(cell):
    guided, = train.callbacks_of(cell, None, None)
    assert guided.lam == cell.lam
    assert (guided.second_pass is None) == (cell.control in ('', 'gradient'))
    assert isinstance(guided.explainer, GradientXInput) == (cell.control == 'gradient')


def test_what_is_finished_is_reported_and_nothing_trained(glyphs, tmp_path, monkeypatch):
    def run(**kwargs): return run_table('table2', TINY, glyphs, tmp_path, 1, [1], 'fsc_reproduce table2', **kwargs)
    with pytest.raises(ValueError, match='table2 has no finished cells of RN, CAN, GNN'): run(train=False)
    monkeypatch.setattr(runs, 'train_cell', lambda cell, *args, train=runs.train_cell: pytest.fail('trained')
                        if cell.base == 'CAN' else train(cell, *args))
    run(methods=['RN'])
    text = run(train=False).read_text()
    assert '**Not finished: 2 of 4 cells are there: rn_1shot_seed0, lrp-rn_1shot_seed0.**' in text
    assert '| RN | 1 | False | ' in text and '| CAN | 1 | False | –' not in text


def test_a_figure_of_what_is_finished_says_so(glyphs, tmp_path):
    for lrp in (False, True): runs.run_cell(Cell('RN', 5, 0, lrp), TINY, glyphs, tmp_path/'glyphs'/'tiny')
    text = run_table('figure3', TINY, glyphs, tmp_path, 1, [5], 'fsc_reproduce figure3', train=False).read_text()
    assert '**Not finished: 2 of 6 cells are there: rn_5shot_seed0, lrp-rn_5shot_seed0.**' in text
    assert '| RN | LRP-RN | novel |' in text and '% | – |' in text and 'nan' not in text


def test_a_result_of_a_version_with_fewer_fields_is_read(glyphs, tmp_path, monkeypatch):
    cell = Cell('RN', 1, 0)
    first = runs.run_cell(cell, TINY, glyphs, tmp_path)
    monkeypatch.setattr(runs, 'train_cell', lambda *args: pytest.fail('trained twice'))
    file, stored = runs.result_file(cell, tmp_path), json.loads(json.dumps(first))
    del stored['cell']['control'], stored['cell']['lam'], stored['recipe']['pretrain_patience']
    file.write_text(json.dumps(stored | dict(sha256=sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest())))
    assert runs.run_cell(cell, TINY, glyphs, tmp_path) == first


def test_validation_classes_are_tested_where_the_preset_says_so(glyphs, tmp_path):
    preset = replace(TINY, test_val=True, recipes={'RN': replace(TINY.recipes['RN'], val_episodes=2, pretrain_patience=1)})
    result = runs.run_cell(Cell('RN', 1, 0), preset, glyphs, tmp_path)
    assert [r['domain'] for r in result['results'] if not r['transductive']] == ['novel', *glyphs.targets, 'val']
    assert len(result['training']['validation']) == 2 and len(result['training']['pretraining']) == 1
    assert result['versions'].keys() == {'fsc_fastai', 'commit', 'torch', 'fastai'}
    report = run_table('table2', preset, glyphs, tmp_path/'out', 1, [1], 'fsc_reproduce table2', methods=['RN'])
    assert '| RN | 1 | 0 | validation | 2 |' in report.read_text() and report.with_name('table2_training.png').exists()


def test_a_single_cell_is_reported(glyphs, tmp_path):
    runs.run_cell(Cell('RN', 1, 0), TINY, glyphs, tmp_path/'glyphs'/'tiny')
    text = run_table('table2', TINY, glyphs, tmp_path, 1, [1], 'fsc_reproduce table2', train=False).read_text()
    assert '1 of 4 cells are there' in text and 'What each step adds' not in text and 'levelled' not in text


def test_what_the_last_third_of_a_training_adds():
    def result(seed, model, **training):
        return dict(model=model, recipe=dict(arch='conv4'), cell=dict(seed=seed, shot=5, unseen=''), training=training)
    curves = dict(pretraining=[.1, .2, .3], validation=[.5, .7, .6, .65, .72, .71])
    frame = training_frame([result(0, 'RN', **curves), result(0, 'LRP-RN', pretraining=[.1, .2, .3], validation=[.5, .4]),
                            dict(model='CAN', cell={}, recipe={})])
    assert list(zip(frame.model, frame.stage, frame.epochs, frame.best)) == [
        ('conv4', 'pretraining', 3, 3), ('RN', 'validation', 6, 5), ('LRP-RN', 'validation', 2, 1)]
    assert frame.accuracy.tolist() == pytest.approx([30, 72, 50]) and frame.last_third.tolist() == pytest.approx([10, 2, -10])
