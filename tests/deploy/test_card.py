"The README.md beside a saved classifier"
import os

import numpy as np
import pandas as pd
import pytest
import yaml
from torch import nn

from fsc_fastai.deploy import FewShotClassifier, ModelCard, Preprocess
from fsc_fastai.methods import ProtoNet, create_fsc_model

from .toys import COLOURS, classifier, examples, picture

RESULTS = pd.DataFrame([dict(domain='greek', way=5, shot=1, n_episodes=600, accuracy=.6123, ci95=.0081)])


def card_of(folder): return (folder/'README.md').read_text(encoding='utf-8')


def test_it_says_what_the_classifier_is_and_what_it_is_given(tmp_path):
    known = classifier('relation').fit(*examples())
    known.reject = .25
    card = ModelCard('Latin letters.', RESULTS, 'apache-2.0', 'CC0')
    text = card_of(known.save(tmp_path, card=card))
    assert yaml.safe_load(text.split('---')[1]) == dict(
        library_name='fsc_fastai', pipeline_tag='image-classification', tags=['few-shot-learning'], license='apache-2.0')
    n = sum(p.numel() for p in known.model.parameters())
    for said in ('| RelationNet |', '| conv4 |', f'| {n:,} |', '| 32×32 px |', 'below a probability of 0.25', 'Latin letters.',
                 'Licence of the images: CC0', '| greek | 5 | 1 | 61.23% ± 0.81% | 600 |', '5, by 15 examples:', '"yellow"',
                 'FewShotClassifier.from_pretrained(folder)'): assert said in text, said
    assert card_of(classifier().save(tmp_path)).count('Not stated') == 3, 'and no more than it knows'


def test_the_snippet_loads_what_was_saved(tmp_path):
    class Own(ProtoNet): "A method that is not registered"
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU())
    known = FewShotClassifier(create_fsc_model(Own, body, img_size=32), Preprocess(32)).fit(*examples())
    with pytest.warns(UserWarning, match='not a registered method'): folder = known.save(tmp_path)
    picture('red', 40).save(tmp_path/'new.jpg')
    code = card_of(folder).split('```')[1].removeprefix('python\n').replace('new.jpg', str(tmp_path/'new.jpg'))
    assert 'arch=backbone, method=Own' in code
    names = dict(folder=folder, backbone=nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()), Own=Own)
    exec(code, names)
    assert np.array_equal(names['classifier'].predict_proba([picture('red', 40)]), known.predict_proba([picture('red', 40)]))


def test_names_of_classes_stay_names(tmp_path):
    labels = ['```\n# a', '<script>', '| b', *map(str, range(200))]
    images = [picture(c, i) for i in range(41) for c in COLOURS][:len(labels)]
    lines = card_of(classifier().fit(images, labels).save(tmp_path)).splitlines()
    block = lines[len(lines) - lines[::-1].index('```', 1) - 1:]
    assert block[0] == block[-1] == '```' and block[-2] == 'and 103 more' and len(block) == 103
    assert all(o.startswith('"') for o in block[1:-2]) and '# a' not in lines


def test_a_readme_of_ones_own_stays(tmp_path):
    known = classifier().fit(*examples())
    (tmp_path/'README.md').write_text('Mine.')
    with pytest.warns(UserWarning, match='README.md is no card of fsc_fastai: it stays'): known.save(tmp_path)
    assert card_of(tmp_path) == 'Mine.' and FewShotClassifier.from_pretrained(tmp_path).fitted
    edited = card_of(known.save(tmp_path/'a')).replace('\n<!-- Written', '\n<!-- No longer')
    (tmp_path/'a'/'README.md').write_text(edited, encoding='utf-8')
    with pytest.warns(UserWarning, match='it stays'): known.save(tmp_path/'a')
    assert card_of(tmp_path/'a') == edited


def test_results_of_another_kind_leave_the_old_classifier(tmp_path):
    known = classifier().fit(*examples())
    before = {f.name: f.read_bytes() for f in known.save(tmp_path).iterdir()}
    with pytest.raises(UnicodeEncodeError): known.save(tmp_path, card=ModelCard('\ud800'))
    with pytest.raises(ValueError, match='results have no way, shot, .*learn.evaluate'):
        known.remove_class('grey').save(tmp_path, card=ModelCard(results=RESULTS[['domain', 'accuracy']]))
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


@pytest.mark.parametrize('spoilt', [b'\xff\x00' * 9000, b'---\nlibrary_name: !!python/object:os.system\n---\n', None])
def test_who_loads_does_not_look_at_it(tmp_path, spoilt):
    folder = classifier().fit(*examples()).save(tmp_path/'a')
    os.unlink(folder/'README.md')
    if spoilt is None: os.symlink(tmp_path, folder/'README.md')
    else: (folder/'README.md').write_bytes(spoilt)
    assert FewShotClassifier.from_pretrained(folder).fitted
