"Checkpoints with other names: those of the publications, and encoders from other libraries"
from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ['LoadReport', 'Checkpoint', 'load_reference_state', 'load_encoder_weights', 'read_checkpoint']

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
    "The tensors of a checkpoint that were loaded, and those that were not"
    loaded: list[str] = field(default_factory=list) # Names of the model's tensors that were loaded
    missing: list[str] = field(default_factory=list) # Names of the model's tensors that were not loaded
    unexpected: list[str] = field(default_factory=list) # Names in the checkpoint that the model does not have
    renamed: dict[str, str] = field(default_factory=dict) # Name in the checkpoint of each tensor that was matched by position

    def __str__(self) -> str:
        n = len(self.loaded) + len(self.missing)
        told = f'{len(self.loaded)} of {n} tensors loaded'
        if self.renamed:
            first = ', '.join(f'{theirs} as {ours}' for ours, theirs in islice(self.renamed.items(), 2))
            told += f', all by their position, such as {first}'
        return told + (f'; left out: {_some(self.unexpected)}' if self.unexpected else '')


@dataclass
class Checkpoint:
    "The tensors of a checkpoint, and where they come from"
    state: dict[str, Tensor] # Tensors by name, without wrappers
    where: str = 'the given dictionary' # Source, for errors
    backbone: str = '' # Name of the backbone, if the checkpoint says it


def read_checkpoint(weights: str | Path | Mapping[str, Any]) -> Checkpoint:
    """Read a checkpoint: a safetensors file, a torch file (without executing code), or a dictionary, with or without wrappers.

    Raises `FileNotFoundError` for a missing file and `ValueError` for one that holds no tensors.
    """
    found = Checkpoint({})
    if not isinstance(weights, Mapping):
        found.where, found.backbone = str(weights), _named_in(Path(weights))
        if not Path(weights).is_file(): raise FileNotFoundError(f'No checkpoint file {found.where}')
        weights = _read_file(Path(weights))
    if isinstance(weights, Mapping) and isinstance(weights.get('arch'), str): found.backbone = weights['arch']
    for wrapper in ('state', 'state_dict', 'model'):
        if isinstance(weights, Mapping) and isinstance(weights.get(wrapper), Mapping): weights = weights[wrapper]
    tensors = {k: v for k, v in weights.items() if isinstance(v, Tensor)} if isinstance(weights, Mapping) else {}
    if not tensors: raise ValueError(f'{found.where} holds no state dict with tensors')
    found.state = {re.sub(r'^(module\.|_orig_mod\.)+', '', k): v for k, v in tensors.items()}
    return found


def _named_in(path: Path) -> str:
    "The backbone of timm's that the name of a file begins with"
    return max((o for o in timm.list_models() if path.name.startswith(o)), key=len, default='')


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
    yield prefix + name
    yield prefix + _backbone_name(_bare(name), blocks)


def _place(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    "The tensors of `state` under the names of `model`, and the report"
    ours, (prefix, body) = model.state_dict(), _backbone_of(model)
    blocks = [name for name, _ in body.named_modules() if re.fullmatch(r'layer\d\.\d+', name)]  # residual ones, in order
    placed, report = {}, LoadReport()
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
    """Load weights with the names of the publications' code or of this library. Returns a report of what was loaded.

    Raises `ValueError` if a tensor has another shape than in the model, or if none fits; the model is then unchanged.
    """
    state = read_checkpoint(state_dict).state
    placed, report = _place(model, state)
    if not placed:
        raise ValueError(f'The checkpoint has nothing for this {type(model).__name__}: it holds {_some(state)}; '
                         f'wanted {_some(model.state_dict())}')
    model.load_state_dict(placed, strict=False)
    return report


def load_encoder_weights(
    encoder: nn.Module, # The encoder, changed in place
    weights: str | Path | Mapping[str, Any] | Checkpoint, # State dict or checkpoint of an encoder, or of a model that holds one
    remap: bool = False, # Match tensors by position instead of name; all shapes must agree
) -> LoadReport:
    """Load an encoder from a checkpoint, which may also hold other parts of a model.

    Names may be those of this library, of timm, of the publications, or of a vendor that timm can read. Raises `ValueError`,
    which names checkpoint and backbone, if a tensor of the encoder is missing or has another shape, and for a checkpoint of a
    larger backbone; the encoder is then unchanged.
    """
    found = weights if isinstance(weights, Checkpoint) else read_checkpoint(weights)
    try: placed, report = _by_position(encoder, found.state) if remap else _by_name(encoder, found.state)
    except ValueError as e:
        of = f', by its name of {found.backbone},' if found.backbone else ''
        raise ValueError(f'{found.where}{of} does not fit {getattr(encoder, "name", type(encoder).__name__)}: {e}') from e
    encoder.load_state_dict(placed, strict=False)
    return report


def _by_name(encoder: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    "A place for each of the encoder's tensors, as the checkpoint names them or as timm reads it. Raises `ValueError`"
    try: return _whole(encoder, state)
    except ValueError:
        read = _as_timm_reads(encoder, state)
        if read is None: raise
        try: return _whole(encoder, read)
        except ValueError: pass
        raise


def _whole(encoder: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    placed, report = _place(encoder, state)
    if report.missing:
        lacks = f'it lacks {len(report.missing)} tensors of the encoder, such as {_some(report.missing)}'
        if not report.unexpected: raise ValueError(lacks)
        raise ValueError(f'{lacks}; there is no place for {_some(report.unexpected)}. If they are the same tensors under other '
                         'names, remap=True (--remap) matches them by position')
    if larger := _of_a_larger_one(encoder, report.unexpected):
        raise ValueError(f'it is of another backbone, with parts that this one has not: {_some(larger)}')
    return placed, report


def _bare(name: str) -> str: return re.sub(r'^((encoder|body|feature|base|backbone|model|0)\.)+', '', name)


def _of_a_larger_one(encoder: nn.Module, unexpected: Iterable[str]) -> list[str]:
    "Weights without a place that would lie inside parts of the backbone, its classifier apart"
    body = _backbone_of(encoder)[1]
    parts = {name for name, part in body.named_children() if any(True for _ in part.parameters())}
    last = (getattr(body, 'pretrained_cfg', None) or {}).get('classifier') or ()
    heads = tuple(f'{o}.' for o in ([last] if isinstance(last, str) else last))
    return [name for name in unexpected if _bare(name).partition('.')[0] in parts and name.endswith(('.weight', '.bias'))
            and not (heads and _bare(name).startswith(heads))]


def _as_timm_reads(encoder: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    "The tensors as timm's own reader of foreign checkpoints gives them, which also fits position embeddings to the image size"
    body = _backbone_of(encoder)[1]
    read = getattr(sys.modules[type(body).__module__], 'checkpoint_filter_fn', None)
    if read is None: return None
    try: return dict(read({re.sub(r'^(encoder|body)\.', '', k): v for k, v in state.items()}, body))
    except Exception: return None  # a reader of another network's tensors can fail in any way


def _by_position(encoder: nn.Module, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], LoadReport]:
    """The first tensors of the checkpoint in the places of the encoder's, in their order; what is left over is its classifier.

    Raises `ValueError` for the first pair of another shape, or of another kind (`weight`, `bias`, `running_mean`, …).
    """
    counted = lambda names: [k for k in names if not k.endswith('num_batches_tracked')]
    ours, theirs = encoder.state_dict(), counted(state)
    names = counted(ours)
    if len(theirs) < len(names): raise ValueError(f'it has {len(theirs)} tensors, the encoder {len(names)}')
    for i, (name, other) in enumerate(zip(names, theirs)):
        if ours[name].shape != state[other].shape or name.rpartition('.')[2] != other.rpartition('.')[2]:
            raise ValueError(f'at position {i + 1} it has {other} {tuple(state[other].shape)}, '
                             f'the encoder {name} {tuple(ours[name].shape)}')
    pairs = dict(zip(names, theirs))
    return {k: state[v] for k, v in pairs.items()}, LoadReport(names, [], theirs[len(names):], pairs)
