"timm's pretrained weights, from this machine or from a hub; without a network the error comes at once"
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import urlopen

import torch
from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError
from timm.models import load_model_config_from_hf

from ..data.image_config import ImageConfig, configuration

__all__ = ['hub_id', 'check_name', 'has_weights', 'images_of', 'source_of']

HUBS = 'hf-hub:', 'hf_hub:', 'hf://'
FILES = 'model.safetensors', 'pytorch_model.bin'
SECONDS = 5 # That a hub has to answer


def hub_id(
    name: Any, # Of weights or of a backbone
) -> str | None:
    """`owner/name` of what lies on the Hugging Face Hub, None for anything else.

    >>> hub_id('hf-hub:timm/resnet18.a1_in1k'), hub_id('resnet18')
    ('timm/resnet18.a1_in1k', None)
    """
    return next((name.removeprefix(o) for o in HUBS if isinstance(name, str) and name.startswith(o)), None)


def check_name(
    arch: str, # A timm name; `hf-hub:owner/name` and `local-dir:folder` are left to timm
) -> None:
    "`ValueError` for an unknown backbone or tag, which offers the nearest names"
    if ':' not in arch: configuration(arch)


def has_weights(
    arch: str, # As `check_name` passes it
) -> bool:
    "Does timm know pretrained weights for it?"
    if ':' in arch: return True
    cfg = configuration(arch)
    return bool(cfg and (cfg.has_weights or cfg.file or cfg.state_dict))


def images_of(
    arch: str, # As `check_name` passes it
) -> ImageConfig:
    "What the weights of a backbone were trained on. Raises `ConnectionError` where a hub has to be asked and does not answer"
    if ':' not in arch: return ImageConfig.of(arch)
    source_of(arch)
    if owner_name := hub_id(arch): return ImageConfig.of(load_model_config_from_hf(owner_name)[0])
    values = json.loads((Path(arch.partition(':')[2])/'config.json').read_text(encoding='utf-8'))
    return ImageConfig.of(values.get('pretrained_cfg', values))


def source_of(
    arch: str, # A backbone with weights
    hub: str | None = None, # `owner/name` of other weights for it; None: those that timm has for this name
) -> dict[str, Any]:
    """What to add to timm's configuration of the weights: a file, where they lie on this machine already.

    Raises `ConnectionError`, which names the backbone and the remedy, where they do not and no hub answers.
    """
    cfg: Any = None if ':' in arch else configuration(arch)
    if hub is None and (arch.startswith('local-dir:') or cfg and (cfg.file or cfg.state_dict)): return {}
    own = hub_id(arch)
    repo = hub or own or cfg.hf_hub_id
    there: dict[str, Any] = {} if hub is None else dict(hf_hub_id=hub, hf_hub_filename=None, url='', custom_load=False)
    if repo:
        names = [cfg.hf_hub_filename] if cfg and cfg.hf_hub_filename and hub is None else FILES
        name, _, revision = repo.partition('@')
        cached = [f for f in (try_to_load_from_cache(name, o, revision=revision or None) for o in names) if isinstance(f, str)]
        if cached and not own and not (cfg and cfg.custom_load and hub is None): return there | dict(file=cached[0])
        _ask(arch, lambda: _hub_answers(name, names[0]), f'hub {constants.ENDPOINT}')
    elif not (Path(torch.hub.get_dir())/'checkpoints'/os.path.basename(urlparse(cfg.url).path)).exists():
        _ask(arch, lambda: urlopen(cfg.url, timeout=SECONDS).close(), cfg.url)
    return there


def _ask(arch: str, answers: Any, where: str) -> None:
    "One attempt. Libraries of downloads make a dozen, with pauses that grow"
    try:
        if constants.HF_HUB_OFFLINE: raise OSError('HF_HUB_OFFLINE is set')
        answers()
    except Exception as e:  # whatever libraries of downloads raise
        raise ConnectionError(f'the pretrained weights of {arch!r} are not on this machine, and {where} does not answer ({e}): '
                              'bring a checkpoint and pass weights=FILE (pretrained=FILE for a learner, --weights FILE)') from e


def _hub_answers(repo: str, file: str) -> None:
    try: get_hf_file_metadata(hf_hub_url(repo, file), timeout=SECONDS)
    except HfHubHTTPError as e:
        if e.response.status_code != 404: raise  # another file may be there; timm says it better
