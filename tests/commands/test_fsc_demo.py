"The demo on few and small glyphs: everything that it promises to write is there"
import re

import pandas as pd

from fsc_fastai.commands import fsc_demo
from fsc_fastai.data.glyphs import untar_glyph_domains, untar_glyphs


def test_demo_writes_figures_table_and_learner(tmp_path, monkeypatch, capsys):
    small = dict(size=28, path=tmp_path/'glyphs', progress=False)
    monkeypatch.setattr(fsc_demo, 'untar_glyphs', lambda n_images: untar_glyphs(n_classes=28, n_images=21, **small))
    monkeypatch.setattr(fsc_demo, 'untar_glyph_domains',
                        lambda domains, n_images: untar_glyph_domains(domains, n_classes=5, n_images=21, **small))
    monkeypatch.setattr(fsc_demo, 'UNSEEN', ['greek', 'digits'])
    fsc_demo.fsc_demo(tmp_path/'out', size=28, pretrain_epochs=1, train_episodes=3, n_episodes=3)
    for name in ('episode.png', 'training_plain.png', 'training_guided.png', 'results.png', 'heatmaps.png', 'export.pkl'):
        assert (tmp_path/'out'/name).stat().st_size > 1000, name
    csv = pd.read_csv(tmp_path/'out'/'results.csv')
    assert csv.model.tolist() == ['plain'] * 3 + ['guided'] * 3 + ['raw pixels'] * 3
    assert csv.domain.tolist() == ['novel', 'greek', 'digits'] * 3 and csv.accuracy.between(0, 1).all()
    shown = capsys.readouterr().out
    for word in ('greek', 'guided − plain', 'raw pixels', 'Chance', '±', 'Where to go on', 'fsc_train FOLDER --lrp'):
        assert word in shown
    assert shown.count('epoch 0') == 5 and not {'\r', '█', '|'} & {*shown}, 'a log has one line per epoch, and no bars'
    assert max(len(line.replace(str(tmp_path/'out'), 'demo_out')) for line in shown.splitlines()) <= 130, 'nor lines that wrap'
    losses = re.findall(r'epoch 0  train_loss .*', shown)
    assert 'guided_loss' not in losses[1] and 'guided_loss' in losses[3], 'the plain model first, then the guided one'
