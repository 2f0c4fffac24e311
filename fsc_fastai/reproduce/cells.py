"What there is to train for each table of the paper, and how large"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ['Cell', 'Preset', 'PRESETS', 'table_cells']

METHODS = {'RN': 'relation', 'CAN': 'can', 'GNN': 'gnn'}


@dataclass(frozen=True)
class Cell:
    "One trained model of a table"
    base: str           # RN, CAN or GNN
    shot: int
    seed: int
    lrp: bool = False   # explanation-guided
    ft: str = ''        # feature-wise transformation: none, `ft` (fixed) or `lft` (learned)
    unseen: str = ''    # the target that `lft` leaves out: all other targets are its pseudo-unseen domains

    @property
    def method(self) -> str:
        "The method by its name in the library"
        return METHODS[self.base]

    @property
    def model(self) -> str:
        "The model as the paper writes it, such as LFT-LRP-RN"
        return '-'.join(part for part in (self.ft.upper(), 'LRP' if self.lrp else '', self.base) if part)

    @property
    def key(self) -> str:
        "The name of the cell's folder"
        return '_'.join(filter(None, (self.model.lower(), f'{self.shot}shot', self.unseen, f'seed{self.seed}')))


@dataclass(frozen=True)
class Preset:
    "How long and how large to train; what is not the paper's is chosen so that the default domains take hours on two cores"
    name: str
    size: int                   # side of the images in pixels
    arch: dict[str, str]        # backbone by method
    pretrain_epochs: int
    epochs: int
    n_episodes: int             # training episodes an epoch
    n_query: int                # training queries a class
    test_episodes: int
    test_query: int
    lr: float
    schedule: str               # one_cycle, or flat as in the references
    method_kwargs: dict[str, dict[str, Any]]


PRESETS = {p.name: p for p in (
    Preset('tiny', size=28, arch=dict.fromkeys(METHODS, 'conv4'), pretrain_epochs=1, epochs=2, n_episodes=3, n_query=3,
           test_episodes=4, test_query=5, lr=1e-3, schedule='one_cycle', method_kwargs={}),
    Preset('demo', size=48, arch=dict.fromkeys(METHODS, 'conv4'), pretrain_epochs=5, epochs=3, n_episodes=100, n_query=8,
           test_episodes=400, test_query=16, lr=1e-3, schedule='one_cycle', method_kwargs={}),
    Preset('small', size=48, arch=dict.fromkeys(METHODS, 'conv4'), pretrain_epochs=12, epochs=8, n_episodes=100, n_query=8,
           test_episodes=600, test_query=16, lr=1e-3, schedule='one_cycle', method_kwargs={}),
    Preset('paper', size=224, arch={'RN': 'resnet10', 'CAN': 'resnet12', 'GNN': 'resnet10'}, pretrain_epochs=400, epochs=400,
           n_episodes=100, n_query=16, test_episodes=2000, test_query=16, lr=1e-3, schedule='flat', method_kwargs={}),
)}


def table_cells(
    table: str, # table2, table3, table4 or figure3
    seeds: int, # Models of each kind
    targets: Sequence[str], # The unseen domains, for Table IV's leave-one-out
    shots: Sequence[int] = (5, 1), # Shots in the order in which to train
) -> list[Cell]:
    "The cells of a table, seed by seed, so that a run that is cut off leaves whole seeds"
    def kinds(shot: int, seed: int) -> list[Cell]:
        if table == 'table2': return [Cell(base, shot, seed, lrp) for base in ('RN', 'CAN') for lrp in (False, True)]
        if table == 'table3': return [Cell('GNN', shot, seed, lrp) for lrp in (False, True)]
        if table == 'figure3': return [Cell(base, shot, seed, lrp) for base in METHODS for lrp in (False, True)] * (shot == 5)
        if table == 'table4':
            alone = [Cell('RN', shot, seed), Cell('RN', shot, seed, ft='ft'), Cell('RN', shot, seed, lrp=True)]
            return alone + [Cell('RN', shot, seed, lrp, 'lft', unseen) for unseen in targets for lrp in (False, True)]
        raise ValueError(f'table={table!r}: one of table2, table3, table4, figure3')
    return [cell for shot in shots for seed in range(seeds) for cell in kinds(shot, seed)]
