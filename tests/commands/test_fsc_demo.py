"The demo on few and small glyphs: everything that it promises to write is there"
from functools import partial

import pandas as pd

from fsc_fastai.commands import fsc_demo
from fsc_fastai.data.glyphs import untar_glyph_domains, untar_glyphs


def test_demo_writes_figures_table_and_learner(tmp_path, monkeypatch, capsys):
    small = dict(n_images=21, size=28, path=tmp_path/'glyphs', progress=False)
    monkeypatch.setattr(fsc_demo, 'untar_glyphs', partial(untar_glyphs, n_classes=40, **small))
    monkeypatch.setattr(fsc_demo, 'untar_glyph_domains', partial(untar_glyph_domains, n_classes=6, **small))
    monkeypatch.setattr(fsc_demo, 'UNSEEN', ['greek', 'digits'])
    fsc_demo.fsc_demo(tmp_path/'out', size=28, epochs=1, pretrain_epochs=1, n_episodes=3)
    for name in ('episode.png', 'training.png', 'results.png', 'heatmaps.png', 'export.pkl'):
        assert (tmp_path/'out'/name).stat().st_size > 1000, name
    csv = pd.read_csv(tmp_path/'out'/'results.csv')
    assert csv.domain.tolist() == ['novel', 'greek', 'digits']
    assert csv.accuracy.between(0, 1).all() and csv.raw_pixels.between(0, 1).all()
    shown = capsys.readouterr().out
    for word in ('greek', 'chance %', 'raw pixels %', '±', 'Where to go on', 'fsc_train FOLDER --lrp'): assert word in shown
    assert shown.count('epoch 0') == 3 and not {'\r', '█', '|'} & {*shown}, 'a log has one line per epoch, and no bars'
