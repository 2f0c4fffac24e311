"Readers of ChestX, ISIC, EuroSAT and CropDiseases, on small trees in exactly their layouts"
from dataclasses import replace

import pytest
from PIL import Image

from fsc_fastai.data import domains
from fsc_fastai.data.domains import DOMAINS, domain_items, prepare_domain
from fsc_fastai.data.readers import read_images
from fsc_fastai.learner.evaluate import PROTOCOLS
from tests.data.test_domains import listed, numbered, touch
from tests.learners import hue_loaders

CHESTX = '''Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,OriginalImage[Width,\
Height],OriginalImagePixelSpacing[x,y],
00000001_000.png,Cardiomegaly,0,1,058Y,M,PA,2682,2749,0.143,0.143,
00000001_001.png,Cardiomegaly|Emphysema,1,1,058Y,M,PA,2894,2729,0.143,0.143,
00000002_000.png,No Finding,0,2,081Y,M,PA,2500,2048,0.171,0.171,
00000003_000.png,Mass,0,3,081Y,F,PA,2582,2991,0.143,0.143,
00000004_000.png,Pneumonia,0,4,082Y,M,AP,2500,2048,0.168,0.168,
00000005_000.png,Hernia,0,5,069Y,F,PA,2048,2500,0.168,0.168,
00000006_000.png,Cardiomegaly,0,6,081Y,M,PA,2500,2048,0.168,0.168,
'''


@pytest.mark.parametrize('homes', [['images'], ['images_001/images', 'images_012/images']], ids=['one folder', 'by archive'])
@pytest.mark.parametrize('table', ['Data_Entry_2017.csv', 'Data_Entry_2017_v2020.csv'])
def test_chestx_are_the_images_with_one_of_seven_findings(tmp_path, homes, table):
    names = [line.split(',')[0] for line in CHESTX.splitlines()[1:]]
    for k, name in enumerate(names): touch(tmp_path/homes[k % len(homes)], name)
    (tmp_path/table).write_text(CHESTX)
    found = listed(prepare_domain('chestx', tmp_path, strict=False))
    assert found == dict(novel={'Cardiomegaly': ['00000001_000.png', '00000006_000.png'], 'Mass': ['00000003_000.png']})
    with pytest.raises(ValueError, match='3 images found, 25848 wanted'): prepare_domain('chestx', tmp_path)


def test_an_x_ray_that_the_table_names_but_is_not_there_is_named(tmp_path):
    (tmp_path/'Data_Entry_2017.csv').write_text(CHESTX)
    touch(tmp_path/'images', '00000001_000.png', '00000003_000.png')
    with pytest.raises(FileNotFoundError, match=r'1 of the 3 images .*Data_Entry_2017\.csv .* missing.*00000006_000\.png'):
        prepare_domain('chestx', tmp_path, strict=False)


def test_a_table_without_its_columns_is_named(tmp_path):
    touch(tmp_path/'images', 'a.png')
    (tmp_path/'Data_Entry_2017.csv').write_text('Image,Labels\na.png,Mass\n')
    with pytest.raises(ValueError, match=r'2017\.csv lacks the columns Image Index, Finding Labels; it has Image, Labels'):
        prepare_domain('chestx', tmp_path)


def isic(root, rows, stem='ISIC2018_Task3_Training_GroundTruth', folder=True):
    home = root/stem if folder else root
    home.mkdir(parents=True, exist_ok=True)
    (home/f'{stem}.csv').write_text('image,MEL,NV,BCC,AKIEC,BKL,DF,VASC\n' + '\n'.join(rows) + '\n')


@pytest.mark.parametrize('folder', [True, False])
def test_isic_by_the_column_that_has_the_one(tmp_path, folder):
    isic(tmp_path, ['ISIC_0024306,0.0,1.0,0.0,0.0,0.0,0.0,0.0', 'ISIC_0024307,0.0,0.0,0.0,0.0,0.0,0.0,1.0',
                    'ISIC_0024308,0.0,1.0,0.0,0.0,0.0,0.0,0.0'], folder=folder)
    touch(tmp_path/'ISIC2018_Task3_Training_Input', 'ISIC_0024306.jpg', 'ISIC_0024307.jpg', 'ISIC_0024308.jpg', 'LICENSE.txt')
    assert listed(prepare_domain('isic', tmp_path, strict=False)) == dict(
        novel={'NV': ['ISIC_0024306.jpg', 'ISIC_0024308.jpg'], 'VASC': ['ISIC_0024307.jpg']})


def test_a_lesion_of_no_class_is_named(tmp_path):
    isic(tmp_path, ['ISIC_0024306' + ',0.0' * 7])
    touch(tmp_path/'ISIC2018_Task3_Training_Input', 'ISIC_0024306.jpg')
    with pytest.raises(ValueError, match=r'GroundTruth\.csv: ISIC_0024306 is of 0 classes'): prepare_domain('isic', tmp_path)


FOLDERS = [('eurosat', '2750'), ('eurosat', 'eurosat/2750'), ('eurosat', 'EuroSAT_RGB'),
           ('crop_diseases', 'train'), ('crop_diseases', 'dataset/train')]


@pytest.mark.parametrize(('name', 'inside'), FOLDERS)
def test_a_folder_a_class(tmp_path, name, inside):
    for c in 'ab': touch(tmp_path/inside/c, *numbered(2))
    touch(tmp_path/inside.replace('train', 'test')/'a', *numbered(2))
    files, labels = domain_items(name, tmp_path, strict=False)
    assert labels == ['a', 'a', 'b', 'b'] and files[0] == tmp_path/inside/'a'/'00000001.jpg'
    n = DOMAINS[name].n_classes[2]
    with pytest.raises(ValueError, match=f'2 novel classes found, {n} wanted; 4 images found, {DOMAINS[name].n_images} wanted'):
        prepare_domain(name, tmp_path)


def test_the_list_of_a_whole_domain_is_read_like_the_others(tmp_path, monkeypatch):
    for c in range(3):
        for k in range(6):
            touch(tmp_path/'data'/'2750'/f'c{c}')
            Image.new('RGB', (8, 8), (c, k, 0)).save(tmp_path/'data'/'2750'/f'c{c}'/f'{k}.png')
    monkeypatch.setitem(domains.DOMAINS, 'eurosat', replace(DOMAINS['eurosat'], n_classes=(0, 0, 3), n_images=18))
    lists = prepare_domain('eurosat', tmp_path/'data', tmp_path/'lists')
    assert list(lists) == ['novel'] and [p.name for p in (tmp_path/'lists').iterdir()] == ['novel.json']
    dls = hue_loaders(tmp_path/'hues')
    for source in (lists, tmp_path/'lists', lists['novel']):
        assert len(read_images(source)) == 18
        dl, = dls.as_domains({'eurosat': source}).values()
        assert list(dl.vocab) == ['c0', 'c1', 'c2']


def test_the_protocol():
    bscd = PROTOCOLS['bscd']
    assert (bscd.n_episodes, bscd.n_query) == (600, 15)
