"Classifiers on the Hugging Face Hub: only the two files of a bundle are read; a model card is beside them"
from __future__ import annotations

import os
from os import PathLike
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, RemoteEntryNotFoundError

from .bundle import JSON_NAME
from .card import CARD_NAME, is_written

__all__ = ['HUB', 'upload', 'local_folder']

HUB = 'hf://'
FILES = [JSON_NAME, 'tensors-*.safetensors']


def upload(
    folder: Path, # A saved classifier
    repo_id: str, # `owner/name`, or `hf://owner/name`
    **kwargs: Any, # Further arguments of `HfApi.create_repo`
) -> str:
    "Upload a classifier to a repository, which is created if needed. Returns the address of the commit"
    repo_id = repo_id.removeprefix(HUB)
    api = HfApi(token=kwargs.pop('token', None))
    api.create_repo(repo_id, exist_ok=True, **kwargs)
    try: ours = is_written(api.hf_hub_download(repo_id, CARD_NAME))
    except RemoteEntryNotFoundError: ours = True
    files = [*FILES, CARD_NAME] if ours else FILES
    commit = api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=files, delete_patterns=files,
                               commit_message='Save a few-shot classifier of fsc_fastai')
    return commit.commit_url


def local_folder(
    folder: str | PathLike, # A folder, or `hf://owner/name`
    **kwargs: Any, # For `snapshot_download`; only with `hf://`
) -> Path:
    "The folder of a classifier, downloaded for `hf://`. Raises `FileNotFoundError` if there is none"
    name = str(folder)
    if not name.startswith(HUB):
        if kwargs: raise ValueError(f'{", ".join(kwargs)}: for a classifier on the Hugging Face Hub, which is named hf://owner/name')
        if os.path.isdir(folder): return Path(folder)
        raise FileNotFoundError(f'no folder {name[:500]}. One on the Hugging Face Hub is named {HUB}owner/name')
    try: return Path(snapshot_download(name.removeprefix(HUB), allow_patterns=FILES, **kwargs))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError) as e:
        raise FileNotFoundError(f'{name} is no classifier on the Hugging Face Hub that can be reached: {e}') from e
