"Classifiers on the Hugging Face Hub: the two files of a bundle, nothing else"
from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from .bundle import JSON_NAME

__all__ = ['upload', 'download']

FILES = [JSON_NAME, 'tensors-*.safetensors']


def upload(
    folder: Path, # A saved classifier
    repo_id: str, # `owner/name`
    **kwargs: Any, # For `HfApi.create_repo`
) -> str:
    "Replace the classifier of a repository, which is made if it is not there; returns the address of the commit"
    api = HfApi(token=kwargs.pop('token', None))
    api.create_repo(repo_id, exist_ok=True, **kwargs)
    commit = api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=FILES, delete_patterns=FILES,
                               commit_message='Save a few-shot classifier of fsc_fastai')
    return commit.commit_url


def download(
    repo_id: str, # `owner/name`
    **kwargs: Any, # For `snapshot_download`
) -> Path:
    "The local folder of a repository's classifier. Raises `FileNotFoundError` where there is none"
    try: return Path(snapshot_download(repo_id, allow_patterns=FILES, **kwargs))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as e:
        raise FileNotFoundError(f'{repo_id!r} is no folder, and no classifier on the Hugging Face Hub that can be reached: '
                                f'{e}') from e
