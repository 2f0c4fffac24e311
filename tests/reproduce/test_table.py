"Tables as resumable runs, on few and small glyphs"
import json
from functools import partial

import pytest

from fsc_fastai.data.glyphs import untar_glyph_domains, untar_glyphs
from fsc_fastai.reproduce import run as runs
from fsc_fastai.reproduce import table as tables
from fsc_fastai.reproduce.cells import PRESETS, Cell, table_cells
from fsc_fastai.reproduce.paper import PUBLISHED, published
from fsc_fastai.reproduce.report import mean_and_ci, paired_effects, summarise


@pytest.fixture
def small_glyphs(tmp_path, monkeypatch):
    small = dict(n_images=10, size=28, path=tmp_path/'glyphs', progress=False)
    data = runs.Data('glyphs', 'latin', untar_glyphs(n_classes=40, **small),
                     untar_glyph_domains(['greek', 'braille'], n_classes=6, **small), do_flip=False)
    monkeypatch.setattr(tables, 'glyph_data', lambda: data)
    return data


def test_a_table_is_trained_once_and_reported(small_glyphs, tmp_path, monkeypatch):
    run = partial(tables.run_table, 'table3', PRESETS['tiny'], None, tmp_path/'results', 2, [1])
    report = run()
    folder = report.parent
    text = report.read_text()
    for word in ('LRP-GNN', 'greek', 'novel', '65.03 ± 0.54', 'fsc_reproduce table3 --preset tiny --seeds 2 --shots 1'):
        assert word in text
    results = {p: p.read_text() for p in folder.glob('cells/*/result.json')}
    assert len(results) == 4 and not list(folder.rglob('*.pt')) and not list(folder.rglob('*.part'))
    monkeypatch.setattr(runs, '_train', lambda *args: pytest.fail('trained twice'))
    assert run().read_text() == text
    assert {p: p.read_text() for p in folder.glob('cells/*/result.json')} == results


def test_a_lost_result_is_computed_again_to_the_same_numbers(small_glyphs, tmp_path):
    cell, preset = Cell('RN', 1, 0, lrp=True), PRESETS['tiny']
    first = runs.run_cell(cell, preset, small_glyphs, tmp_path)
    for name in ('result.json', 'model.safetensors'): (tmp_path/'cells'/cell.key/name).unlink()
    assert json.dumps(runs.run_cell(cell, preset, small_glyphs, tmp_path)) == json.dumps(first)
    assert {r['transductive'] for r in first['results']} == {False, True}


def test_table4_leaves_one_target_out():
    cells = table_cells('table4', 1, ['a', 'b'], [5])
    assert [c.model for c in cells] == ['RN', 'FT-RN', 'LRP-RN', 'LFT-RN', 'LFT-LRP-RN', 'LFT-RN', 'LFT-LRP-RN']
    assert [c.unseen for c in cells] == ['', '', '', 'a', 'a', 'b', 'b'] and len({c.key for c in cells}) == 7
    with pytest.raises(ValueError, match='table9'): table_cells('table9', 1, [])


def test_lft_cell_is_tested_on_the_target_left_out(small_glyphs, tmp_path):
    result = runs.run_cell(Cell('RN', 1, 0, lrp=True, ft='lft', unseen='greek'), PRESETS['tiny'], small_glyphs, tmp_path)
    assert {r['domain'] for r in result['results']} == {'greek'} and result['model'] == 'LFT-LRP-RN'


def test_published_numbers():
    assert published('table2', 'LRP-CAN', 'CUB', 5, True) == (66.57, .43)
    assert published('table3', 'GNN', 'Cars', 5) == (42.59, .42)
    assert published('table4', 'LFT-LRP-RN', 'Plantae', 1) == (36.58, .40)
    assert published('table4', 'LFT-LRP-RN', 'miniImagenet', 1) is None
    assert [len(PUBLISHED[t]) for t in ('table2', 'table3', 'table4')] == [80, 20, 40]


def test_intervals_over_seeds_are_students():
    mean, half = mean_and_ci([1., 2., 3.])
    assert mean == 2 and half == pytest.approx(4.302653 / 3**.5, rel=1e-5)


def test_effects_pair_the_seeds():
    row = dict(transductive=False, ci95=0., right=[])
    frame = runs.results_frame([dict(model=m, cell=dict(shot=5, seed=s), results=[dict(domain=d, accuracy=a + s/10, **row)])
                                for m, a in (('RN', .5), ('LRP-RN', .52)) for s in (0, 1) for d in ('x',)])
    effects = paired_effects(frame)
    assert effects.difference.tolist() == pytest.approx([2., 2.]) and effects.ci95.tolist() == pytest.approx([0., 0.], abs=1e-9)
    assert effects.domain.tolist() == ['x', 'all unseen'] and summarise(frame).accuracy.tolist() == pytest.approx([55., 57.])
