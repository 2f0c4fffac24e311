"""Runs a classifier that `to_onnx` wrote. It needs only onnxruntime, numpy and Pillow, so it starts at once.

    classifier = LightClassifier('onnx')
    classifier.predict('new/00.jpg').label

    python -m fsc_fastai.light onnx new          # answers as fsc_classify does
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .answers import FORMATS, Prediction, answered, answers_text, printable
from .extras import extra
from .pixels import declared_white, oriented, to_rgb

__all__ = ['LightClassifier']

BATCH = 16 # Images at once
LARGEST = 4096 # Longest side of an image that is padded; a larger one is shrunk before
TYPES = {'F32': '<f4', 'F64': '<f8', 'F16': '<f2', 'I64': '<i8'}


def _tensors(path: Path) -> dict[str, np.ndarray]:
    "The arrays of a safetensors file"
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], 'little')
    entries = json.loads(data[8:start])
    entries.pop('__metadata__', None)
    return {name: np.frombuffer(data[start + o['data_offsets'][0]:start + o['data_offsets'][1]], TYPES[o['dtype']])
            .reshape(o['shape']) for name, o in entries.items()}


def _resized(im: Image.Image, size: tuple[int, int], fit: str, by: Image.Resampling) -> Image.Image:
    "An image resized to `size` (width, height), as fastai's `Resize` does it in validation"
    if fit == 'pad' and max(im.size) > LARGEST:
        scale = LARGEST / max(im.size)
        im = im.resize([max(1, round(scale * o)) for o in im.size], Image.Resampling.BILINEAR)
    if fit == 'squish': return im.resize(size, by)
    ratio = (max if fit == 'pad' else min)(a / b for a, b in zip(im.size, size))
    box = [int(ratio * o) for o in size]
    start = [int((a - b) / 2) for a, b in zip(im.size, box)]
    (left, top), (right, bottom) = start, [o + b for o, b in zip(start, box)]
    inner = im.crop((max(0, left), max(0, top), min(im.width, right), min(im.height, bottom)))
    space = [(max(0, -top), max(0, bottom - im.height)), (max(0, -left), max(0, right - im.width))]
    if np.any(space):
        pixels = np.asarray(inner)
        inner = Image.fromarray(np.pad(pixels, [*space, (0, 0)][:pixels.ndim], mode='reflect'))
    return inner.resize(size, by)


class LightClassifier:
    "Answers as the exported `FewShotClassifier` does: the same preprocessing and thresholds, and probabilities equal to 1e-4"
    def __init__(self,
        folder: str | os.PathLike, # Folder that `to_onnx` wrote
        threads: int = 0, # Number of CPU threads; 0: as many as there are cores
    ):
        "Raises `FileNotFoundError` if the folder holds no export, and `ImportError` if onnxruntime is not installed"
        folder = Path(folder)
        if not (folder/'onnx.json').is_file():
            raise FileNotFoundError(f'no exported classifier in {folder}: it has no onnx.json, which classifier.to_onnx writes')
        with extra('onnx'): import onnxruntime  # noqa: I001
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.enable_cpu_mem_arena = threads, False
        self.encoder, self.head = (onnxruntime.InferenceSession(folder/name, options, providers=['CPUExecutionProvider'])
                                   for name in ('encoder.onnx', 'head.onnx'))
        self.values = json.loads((folder/'onnx.json').read_text(encoding='utf-8'))
        self.fixed = _tensors(folder/'support.safetensors')
        self.means = _tensors(folder/'strangeness.safetensors')['means']

    @property
    def classes_(self) -> list[Any]:
        "The classes, sorted: the columns of `predict_proba`"
        return self.values['classes']

    def pixels(self,
        item: Any, # Name of a file, an open file, or a PIL image
    ) -> np.ndarray:
        "An image as the encoder takes it: normalised, `(channels, height, width)`. Raises `OSError` for a file that is no image"
        wanted = self.values['preprocess']
        im = item if isinstance(item, Image.Image) else Image.open(item)
        im.load()
        white = wanted['white'] if wanted['white'] is not None else declared_white(im)
        im = to_rgb(oriented(im) if wanted['orient'] else im, white)
        if len(wanted['mean']) == 1: im = im.convert('L')
        sides = [o if isinstance(o, list) else (o, o) for o in (wanted['size'], wanted['resize'])]
        (height, width), (whole_height, whole_width) = sides
        by = Image.Resampling[wanted.get('interpolation', 'bilinear').upper()]
        im = _resized(im, (whole_width, whole_height), wanted['fit'], by)
        left, top = (whole_width - width) // 2, (whole_height - height) // 2
        x = np.atleast_3d(np.asarray(im.crop((left, top, left + width, top + height)))).transpose(2, 0, 1)
        mean, std = (np.array(wanted[o], np.float32)[:, None, None] for o in ('mean', 'std'))
        return ((x / np.float32(255) - mean) / std).astype(np.float32)

    def scores(self,
        items: Iterable[Any], # Files or PIL images
    ) -> tuple[np.ndarray, np.ndarray]:
        "Scores `(n, n_way)` of images, and their strangeness `(n,)`: the distance from the nearest class mean, at unit length"
        items, scores, strange = list(items), [np.empty((0, len(self.classes_)), np.float32)], [np.empty(0)]
        for k in range(0, len(items), BATCH):
            f, = self.encoder.run(None, {'images': np.stack([self.pixels(o) for o in items[k:k + BATCH]])})
            scores.append(self.head.run(None, {'features': f, **self.fixed})[0])
            pooled = self.means.shape[1] == f.shape[1]
            v = f.reshape(*f.shape[:2], -1).mean(2) if pooled else f.reshape(len(f), -1)
            v = v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12)
            strange.append(np.linalg.norm(v[:, None] - self.means, axis=2).min(1))
        return np.concatenate(scores), np.concatenate(strange)

    def predict_batch(self,
        items: Iterable[Any], # Files or PIL images
    ) -> list[Prediction]:
        "The answers for many images, in their order"
        scores, strangeness = self.scores(items)
        return [answered(dict(zip(self.classes_, row)), strange, self.values['reject'], self.values['limit'])
                for row, strange in zip(self._probabilities(scores).tolist(), strangeness.tolist(), strict=True)]

    def predict(self,
        item: Any, # A file or a PIL image
    ) -> Prediction:
        "The answer for one image"
        return self.predict_batch([item])[0]

    def predict_proba(self,
        items: Iterable[Any], # Files or PIL images
    ) -> np.ndarray:
        "Probabilities `(n, n_way)` of images; the columns are `classes_`"
        return self._probabilities(self.scores(items)[0])

    def _probabilities(self, scores: np.ndarray) -> np.ndarray:
        logits = scores.astype(float) / self.values['temperature']
        p = np.exp(logits - logits.max(1, keepdims=True, initial=-np.inf))
        return p / p.sum(1, keepdims=True)


def _files(images: Iterable[str]) -> list[Path]:
    "The files that are named, and the images in the folders that are named"
    endings, found = set(Image.registered_extensions()), []
    for path in map(Path, images):
        inside = sorted(f for f in path.rglob('*') if f.suffix.lower() in endings) if path.is_dir() else [path]
        found += [f for f in inside if not any(part.startswith('.') for part in f.relative_to(path).parts)]
    if missing := [str(f) for f in found if not f.is_file()]: raise FileNotFoundError(f'no such image: {", ".join(missing[:5])}')
    if not found: raise ValueError('no images to classify: name files, or folders of them')
    return found


def main() -> None:
    "Classify images by an exported classifier"
    parser = argparse.ArgumentParser(prog='python -m fsc_fastai.light', description=main.__doc__)
    parser.add_argument('folder', help='folder that `classifier.to_onnx` wrote')
    parser.add_argument('images', nargs='+', help='images to classify, or folders of them')
    parser.add_argument('--format', choices=FORMATS, default='table')
    args = parser.parse_args()
    try: classifier, files = LightClassifier(args.folder), _files(args.images)
    except (OSError, ValueError, ImportError) as e: raise SystemExit(f'{type(e).__name__}: {printable(e)}') from None
    answers, broken = [], False
    for f in files:
        try: answers.append((f, classifier.predict(f)))
        except Exception as e:  # Pillow raises whatever the decoder meets in a broken file
            broken = True
            print(printable(f'{f}: {e}'), file=sys.stderr)
    if answers: print(answers_text(answers, args.format))
    if broken: raise SystemExit(1)


if __name__ == '__main__': main()
