"Manifests, which show that two people test on the same images; and images that several domains share"
from __future__ import annotations

import json
from collections import Counter, defaultdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fastcore.parallel import parallel

from ..files import atomic_write
from .episode_loader import EpisodicDL
from .images import DatasetImage, open_image
from .readers import read_images

__all__ = ['images_hash', 'write_manifest', 'check_manifest', 'shared_images']


def _tested(source: Any) -> list[tuple[Any, str]]:
    "Image and class of all that an evaluation on `source` draws from: of its test set, where it has one"
    if isinstance(source, EpisodicDL):
        items = (item[0] if isinstance(item, tuple) else item for item in source.items)
        return [(item, str(source.vocab[c])) for item, c in zip(items, source.labels, strict=True)]
    images = read_images(source)
    return [(f, str(label)) for i, (f, label) in enumerate(zip(images.files, images.labels, strict=True))
            if 'test' not in images.sets or images.sets[i] == 'test']


def _listed(source: Any) -> dict[str, list[str]]:
    "Names of a domain's images by class, both sorted; an image without a file is named by its position"
    classes = defaultdict(list)
    for i, (image, label) in enumerate(_tested(source)):
        classes[label].append(Path(image).name if isinstance(image, str | Path) else
                              str(image.index) if isinstance(image, DatasetImage) else str(i))
    return {label: sorted(classes[label]) for label in sorted(classes)}


def _hash(classes: dict[str, list[str]]) -> str:
    return sha256(''.join(f'{label}\t{name}\n' for label, names in classes.items() for name in names).encode()).hexdigest()


def images_hash(
    source: Any, # A domain as for `evaluate` (folder, file lists, dataset, …) or a loader of episodes
) -> str:
    "The first 12 digits of the SHA-256 of a domain's classes and file names, independent of their folder"
    return _hash(_listed(source))[:12]


def write_manifest(
    source: Any, # A domain as for `images_hash`
    file: str | Path, # JSON file to write
) -> str:
    "Write the names of a domain's images by class and the SHA-256 of their list. Returns the `images_hash`"
    classes = _listed(source)
    digest = _hash(classes)
    content = dict(n_images=sum(map(len, classes.values())), sha256=digest, classes=classes)
    with atomic_write(file) as part: part.write_text(json.dumps(content, indent=0, ensure_ascii=False), encoding='utf-8')
    return digest[:12]


def check_manifest(
    source: Any, # A domain as for `images_hash`
    file: str | Path, # File that `write_manifest` wrote
) -> str:
    "Compare a domain with its manifest. Returns the `images_hash`. Raises `ValueError`, which says what differs"
    content = json.loads(Path(file).read_text(encoding='utf-8'))
    if content['sha256'] != _hash(content['classes']):
        raise ValueError(f'{file} was changed: its SHA-256 is not that of its list')
    wanted, found = (Counter(f'{label}/{name}' for label, names in classes.items() for name in names)
                     for classes in (content['classes'], _listed(source)))
    both = {'are missing': wanted - found, 'are not in the list': found - wanted}
    if any(both.values()):
        named = {what: sorted(o.elements()) for what, o in both.items() if o}
        raise ValueError(f'{file} lists {content["n_images"]} images: ' + ' and '.join(
            f'{len(o)} {what} ({", ".join(o[:3])}{", …" if len(o) > 3 else ""})' for what, o in named.items()))
    return content['sha256'][:12]


def _content(image: Any) -> str:
    pixels = np.asarray(open_image(image))
    return sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def shared_images(
    domains: dict[str, Any], # Domains by name, as for `images_hash`, each with all its sets
) -> pd.DataFrame:
    """A table of images that several domains share, by the SHA-256 of their pixels: sha256, domain, label, image.

    Opens every image. Does not find images that were compressed or scaled again.
    """
    rows = []
    for name, source in domains.items():
        images = read_images(source)
        hashes = parallel(_content, images.files, threadpool=True, n_workers=8, progress=False)
        rows += [dict(sha256=h, domain=name, label=str(label), image=str(f))
                 for h, label, f in zip(hashes, images.labels, images.files, strict=True)]
    frame = pd.DataFrame(rows, columns=['sha256', 'domain', 'label', 'image'])
    several = frame.groupby('sha256').domain.transform('nunique') > 1
    return frame[several].sort_values(['sha256', 'domain', 'image'], ignore_index=True)
