"Weights under other names: the checkpoints of the publications, and encoders from anywhere"
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ['LoadReport', 'load_reference_state', 'load_encoder_weights', 'read_state']

# names of the publications' heads, and ours
_HEAD = (
    (r'^relation_module\.(layer\d)\.C\.', r'relation.\1.conv.'),
    (r'^relation_module\.(layer\d)\.BN\.', r'relation.\1.norm.'),
    (r'^relation_module\.', 'relation.'),
    (r'^gnn\.layer_w(\d)\.', r'gnn.layers.\1.adjacency.'),
    (r'^gnn\.layer_l(\d)\.', r'gnn.layers.\1.'),
    (r'^gnn\.w_comp_last\.', 'gnn.last.adjacency.'),
    (r'^gnn\.layer_last\.', 'gnn.last.'),
    (r'^(gnn\..*)adjacency\.conv2d_last\.', r'\1adjacency.last.'),
    (r'^(gnn\.(?:layers\.\d|last))\.bn\.', r'\1.norm.'),
    (r'^cam\.conv1\.conv\.', 'attention.shrink.'),
    (r'^cam\.conv1\.bn\.', 'attention.norm.'),
    (r'^cam\.conv2\.', 'attention.expand.'),
    (r'^clasifier\.', 'classifier.'),
)
_RESIDUAL = {'C1': 'conv1', 'BN1': 'bn1', 'C2': 'conv2', 'BN2': 'bn2', 'shortcut': 'downsample.0', 'BNshortcut': 'downsample.1'}
_CONV = {'C': 'conv', 'BN': 'norm', 'trunk.0': 'conv', 'trunk.1': 'norm'}


@dataclass
class LoadReport:
    "Which tensors of a checkpoint were loaded, and which were not"
    loaded: list[str] = field(default_factory=list) # Names of the model's tensors that were filled
    missing: list[str] = field(default_factory=list) # Names of the model's tensors that were not
    unexpected: list[str] = field(default_factory=list) # Names of the checkpoint that have no place here


def read_state(weights: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: a file (safetensors, or torch's without code to run), or a dictionary, out of its wrappers.

    Raises `FileNotFoundError` for a missing file and `ValueError` for one that holds no tensors.
    """
    where = 'the given dictionary'
    if not isinstance(weights, Mapping):
        where = str(weights)
        if not Path(weights).is_file(): raise FileNotFoundError(f'No checkpoint file {where}')
        weights = _read_file(Path(weights))
    for wrapper in ('state', 'state_dict', 'model'):
        if isinstance(weights, Mapping) and isinstance(weights.get(wrapper), Mapping): weights = weights[wrapper]
    tensors = {k: v for k, v in weights.items() if isinstance(v, Tensor)} if isinstance(weights, Mapping) else {}
    if not tensors: raise ValueError(f'{where} holds no state dict with tensors')
    return {re.sub(r'^(module\.|_orig_mod\.)+', '', k): v for k, v in tensors.items()}


def _read_file(path: Path) -> Any:
    if path.suffix == '.safetensors': return load_file(path)
    try: return torch.load(path, map_location='cpu', weights_only=True)
    except UnpicklingError as e:
        raise ValueError(f'{path} holds more than tensors, and could run code of its writer. If you trust it, '
                         'load it with torch.load(..., weights_only=False) and pass the state dict in it') from e


def _some(names: Iterable[str]) -> str:
    first = list(islice(names, 4))
    return ', '.join(first[:3]) + ', …' * (len(first) > 3) or 'nothing'


def _backbone_of(model: nn.Module) -> tuple[str, nn.Module]:
    "The name prefix of the backbone within a model or an encoder, and the backbone"
    prefix = ''
    for part in ('encoder', 'body'):
        inner = getattr(model, part, None)
        if isinstance(inner, nn.Module): prefix, model = f'{prefix}{part}.', inner
    return prefix, model


def _residual_blocks(body: nn.Module) -> list[str]:
    "Names of the residual blocks in order: layer1.0, layer1.1, …"
    return [name for name, _ in body.named_modules() if re.fullmatch(r'layer\d\.\d+', name)]


def _backbone_name(name: str, blocks: list[str]) -> str:
    "The backbone's name for a tensor of a published encoder"
    m = re.fullmatch(r'trunk\.(\d+)\.(.+)', name)
    if not m: return name
    i, rest = int(m[1]), m[2]
    part, leaf = rest.rpartition('.')[::2]
    if mixed := re.fullmatch(r'(.+)\.(IN|BN)', part): part, leaf = mixed[1], f'{mixed[2]}.{leaf}'  # a norm of FLoR
    if part in _CONV and not blocks: return f'stages.{i}.{_CONV[part]}.{leaf}'
    if part in _RESIDUAL and 0 <= i - 4 < len(blocks): return f'{blocks[i - 4]}.{_RESIDUAL[part]}.{leaf}'
    return f'{("conv1", "bn1")[i]}.{rest}' if i < 2 and blocks else name


def _head_name(name: str) -> str:
    "Our name for a tensor of a published head"
    for pattern, ours in _HEAD: name = re.sub(pattern, ours, name)
    # layer k of the published adjacency is a convolution, a norm and an activation of ours
    return re.sub(r'adjacency\.(conv2d|bn)_(\d)', lambda m: f'adjacency.hidden.{3*int(m[2]) - 3 + (m[1] == "bn")}', name)


def _candidates(name: str, prefix: str, blocks: list[str]) -> Iterator[str]:
    "Our names for a tensor, likeliest first"
    yield name
    yield _head_name(name)
    bare = re.sub(r'^((encoder|body|feature|base|backbone|model|0)\.)+', '', name)
    yield prefix + name
    yield prefix + _backbone_name(bare, blocks)


def _place(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    "The tensors of `state` under the names of `model`, and the report"
    ours, (prefix, body) = model.state_dict(), _backbone_of(model)
    blocks, placed, report = _residual_blocks(body), {}, LoadReport()
    for name, value in state.items():
        target = next((c for c in _candidates(name, prefix, blocks) if c in ours), None)
        if target is None: report.unexpected.append(name); continue
        if ours[target].shape != value.shape:
            raise ValueError(f'{name} of the checkpoint has shape {tuple(value.shape)}, but {target} of this '
                             f'{type(model).__name__} has {tuple(ours[target].shape)}')
        placed[target] = value
    report.loaded = [k for k in ours if k in placed]
    report.missing = [k for k in ours if k not in placed and not k.endswith('num_batches_tracked')]
    return placed, report


def load_reference_state(
    model: nn.Module, # A few-shot model, an `Encoder`, or a backbone
    state_dict: str | Path | Mapping[str, Any], # Tensors by name, a wrapper around them (`state`, `state_dict`), or a file
) -> LoadReport:
    """Load weights named as in the publications' code or as here, and report which were loaded.

    Raises `ValueError` where a tensor has another shape than ours, or where none finds a place; the model is then unchanged.
    """
    state = read_state(state_dict)
    placed, report = _place(model, state)
    if not placed:
        raise ValueError(f'The checkpoint has nothing for this {type(model).__name__}: it holds {_some(state)}; '
                         f'wanted {_some(model.state_dict())}')
    model.load_state_dict(placed, strict=False)
    return report


def load_encoder_weights(
    encoder: nn.Module, # Gets the weights
    weights: str | Path | Mapping[str, Any], # State dict or checkpoint of an encoder, or of a model that holds one
) -> LoadReport:
    """Load an encoder from a checkpoint, which may hold other parts of a model besides.

    Raises `ValueError` if one of the encoder's tensors is missing there or has another shape; the encoder is then unchanged.
    """
    placed, report = _place(encoder, read_state(weights))
    if report.missing:
        raise ValueError(f'The checkpoint lacks {len(report.missing)} tensors of the encoder, such as '
                         f'{_some(report.missing)}; it has no place for {_some(report.unexpected)}')
    encoder.load_state_dict(placed, strict=False)
    return report
