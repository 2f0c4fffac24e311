import shutil
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError

from fsc_fastai.deploy import FewShotClassifier, ModelCard, hub

from .toys import COLOURS, classifier, examples, picture


class FakeHub:
    "Repositories as folders, with the calls of `huggingface_hub` that are used"
    def __init__(self, root): self.root, self.token, self.private = root, None, None

    def api(self, token=None):
        self.token = token
        return self

    def create_repo(self, repo_id, exist_ok=False, private=None):
        self.private = private
        (self.root/repo_id).mkdir(parents=True, exist_ok=exist_ok)

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, delete_patterns, commit_message):
        for pattern in delete_patterns:
            for f in (self.root/repo_id).glob(pattern): f.unlink()
        for pattern in allow_patterns:
            for f in folder_path.glob(pattern): shutil.copy(f, self.root/repo_id)
        return SimpleNamespace(commit_url=f'hub/{repo_id}/commit/1')

    def hf_hub_download(self, repo_id, filename):
        if not (self.root/repo_id/filename).exists():
            raise RemoteEntryNotFoundError('404', response=httpx.Response(404, request=httpx.Request('GET', 'https://hub')))
        return str(self.root/repo_id/filename)

    def snapshot_download(self, repo_id, allow_patterns, revision=None):
        if not (self.root/repo_id).exists():
            raise RepositoryNotFoundError('404', response=httpx.Response(404, request=httpx.Request('GET', 'https://hub')))
        return str(self.root/repo_id)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path/'hub')
    monkeypatch.setattr(hub, 'HfApi', fake.api)
    monkeypatch.setattr(hub, 'snapshot_download', fake.snapshot_download)
    return fake


def test_push_and_load(fake):
    known = classifier().fit(*examples())
    assert known.push_to_hub('me/colours', private=True, token='secret') == 'hub/me/colours/commit/1'
    assert fake.private and fake.token == 'secret'
    known.remove_class('grey').push_to_hub('me/colours')
    assert len(list((fake.root/'me/colours').iterdir())) == 3, 'the tensors of before are gone'
    loaded = FewShotClassifier.from_pretrained('hf://me/colours')
    images = [picture(c, 30) for c in COLOURS]
    assert np.array_equal(loaded.predict_proba(images), known.predict_proba(images))


def test_a_card_on_the_hub_is_replaced_until_somebody_makes_it_their_own(fake):
    known, file = classifier().fit(*examples()), fake.root/'me'/'colours'/'README.md'
    known.push_to_hub('me/colours', card=ModelCard('Hues.', license='mit'))
    assert 'license: "mit"' in file.read_text() and '"grey"' in file.read_text()
    known.remove_class('grey').push_to_hub('me/colours')
    assert '"grey"' not in file.read_text()
    file.write_text('Mine.')
    known.push_to_hub('me/colours')
    assert file.read_text() == 'Mine.'


@pytest.mark.parametrize('error', [None, LocalEntryNotFoundError('no network')])
def test_what_is_nowhere_is_a_plain_error(fake, monkeypatch, error):
    def fails(*args, **kwargs): raise error
    if error: monkeypatch.setattr(hub, 'snapshot_download', fails)
    with pytest.raises(FileNotFoundError, match='hf://me/nothing is no classifier'):
        FewShotClassifier.from_pretrained('hf://me/nothing')


def test_a_mistyped_folder_asks_no_hub(fake, monkeypatch):
    classifier().fit(*examples()).push_to_hub('hf://me/colours')
    monkeypatch.setattr(hub, 'snapshot_download', None)
    with pytest.raises(FileNotFoundError, match='no folder me/colours.*hf://owner/name'):
        FewShotClassifier.from_pretrained('me/colours')


def test_what_is_for_the_hub_alone_is_not_ignored(fake, tmp_path):
    folder = classifier().fit(*examples()).save(tmp_path/'a')
    with pytest.raises(ValueError, match='revision: for a classifier on the Hugging Face Hub'):
        FewShotClassifier.from_pretrained(folder, revision='1')
