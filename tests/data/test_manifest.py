"What images a domain has, and which are in several"
import json

import numpy as np
import pytest
from PIL import Image

from fsc_fastai.data.manifest import check_manifest, images_hash, shared_images, write_manifest
from fsc_fastai.learner.evaluate import compare
from tests.data.trees import write_splits, write_tree
from tests.learners import hue_learner, write_hues


def test_a_manifest_knows_the_images_wherever_they_lie(tmp_path):
    digest = write_manifest(write_tree(tmp_path/'here', 3, 4), tmp_path/'manifest.json')
    content = json.loads((tmp_path/'manifest.json').read_text())
    assert content['n_images'] == 12 and content['classes']['c01'] == ['00.png', '01.png', '02.png', '03.png']
    assert len(digest) == 12 and content['sha256'].startswith(digest)
    assert check_manifest(write_tree(tmp_path/'elsewhere'/'deep', 3, 4), tmp_path/'manifest.json') == digest


def test_what_differs_is_named(tmp_path):
    root = write_tree(tmp_path/'tree', 3, 4)
    write_manifest(root, tmp_path/'manifest.json')
    (root/'c01'/'02.png').rename(root/'c02'/'09.png')
    with pytest.raises(ValueError, match=r'12 images: 1 are missing \(c01/02\.png\) and 1 are not in the list \(c02/09\.png\)'):
        check_manifest(root, tmp_path/'manifest.json')
    content = json.loads((tmp_path/'manifest.json').read_text())
    content['classes']['c02'].append('10.png')
    (tmp_path/'manifest.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r'manifest\.json was changed'): check_manifest(root, tmp_path/'manifest.json')


def test_a_source_with_a_test_set_stands_for_it_as_in_evaluation(tmp_path):
    root = write_splits(tmp_path/'tree')
    assert images_hash(root) == images_hash(root/'novel') != images_hash(root/'val')


def test_a_label_counts_as_much_as_a_name(tmp_path):
    one, other = write_tree(tmp_path/'one', 2, 3), write_tree(tmp_path/'other', 2, 3)
    assert images_hash(one) == images_hash(other)
    (other/'c00').rename(other/'c07')
    assert images_hash(one) != images_hash(other)


def test_results_carry_the_hash_and_other_images_are_not_compared(tmp_path):
    learn = hue_learner(write_hues(tmp_path/'hues'))
    def test(folder): return learn.evaluate({'x': tmp_path/'hues'/folder}, n_episodes=2, n_query=2, n_way=2, n_shot=1)
    novel = test('novel')
    assert novel.images.item() == images_hash(tmp_path/'hues'/'novel') == images_hash(learn.dls.domains['novel'])
    compare(novel, test('novel'))
    with pytest.raises(ValueError, match='differ in .*images'): compare(novel, test('val'))


def test_images_that_several_domains_share_are_found_by_their_pixels(tmp_path):
    rng = np.random.default_rng(0)
    def save(file, pixels):
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    a, b, c, wide = (rng.integers(0, 255, shape, dtype=np.uint8) for shape in [(8, 8, 3)] * 3 + [(4, 16, 3)])
    save(tmp_path/'imagenet'/'train'/'robin'/'1.png', a)
    save(tmp_path/'imagenet'/'test'/'wren'/'2.png', b)
    save(tmp_path/'cub'/'Robin'/'x.bmp', a)
    save(tmp_path/'cub'/'Robin'/'y.bmp', c)
    save(tmp_path/'cub'/'Wren'/'z.bmp', c)          # twice in one domain
    save(tmp_path/'scenes'/'bird'/'w.png', wide)
    save(tmp_path/'scenes'/'bird'/'v.png', wide.reshape(8, 8, 3))  # other bytes of the same number
    found = shared_images({name: tmp_path/name for name in ('imagenet', 'cub', 'scenes')})
    assert found[['domain', 'label']].values.tolist() == [['cub', 'Robin'], ['imagenet', 'robin']]
    assert [f.rsplit('/', 1)[1] for f in found.image] == ['x.bmp', '1.png'] and found.sha256.nunique() == 1
    assert len(shared_images({'scenes': tmp_path/'scenes'})) == 0
