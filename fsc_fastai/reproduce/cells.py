"The models to train for each table of the paper, and their settings"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

__all__ = ['CONTROLS', 'LATER', 'METHODS', 'Cell', 'Recipe', 'Preset', 'PRESETS', 'table_cells', 'guided_best']

METHODS = {'RN': 'relation', 'CAN': 'can', 'GNN': 'gnn', 'PN': 'proto'}
CONTROLS = ('shuffled', 'random', 'ones', 'gradient')
"""What training is guided by to see what relevance itself does: relevance on shuffled channels, weights of the same distribution
at random places, weights of 1 (the loss counts λ times more), gradient × input"""
LAMBDAS = (.25, .5, 1., 2.)
LATER = ('StyleAdv', 'ATA', 'FLoR', 'BSR', 'waveSAN', 'AFA')
"Ways of training for unknown domains that came after the paper"


@dataclass(frozen=True)
class Cell:
    "One trained model of a table"
    base: str           # RN, CAN, GNN or PN
    shot: int
    seed: int
    lrp: bool = False   # explanation-guided
    ft: str = ''        # feature-wise transformation: none, `ft` (fixed) or `lft` (learned)
    unseen: str = ''    # the target that `lft` leaves out: all other targets are its pseudo-unseen domains
    control: str = ''   # what guides `lrp` instead of relevance: a name in `CONTROLS`
    lam: float | None = None    # λ, the weight of the guided loss; None: the published one
    later: str = ''     # a later way of training: a name in `LATER`

    @property
    def method(self) -> str:
        "The method by its name in the library"
        return METHODS[self.base]

    @property
    def model(self) -> str:
        """The name of the model in the paper.

        >>> Cell('RN', 5, 0, lrp=True, ft='lft').model
        'LFT-LRP-RN'
        >>> Cell('RN', 5, 0, lrp=True, lam=.25).model, Cell('RN', 5, 0, lrp=True, control='shuffled').model
        ('LRP-RN λ=0.25', 'Shuffled-RN')
        """
        return self._name + ('' if self.lam is None else f' λ={self.lam:g}')

    @property
    def _name(self) -> str:
        guide = (self.control.capitalize() or 'LRP') if self.lrp else ''
        return '-'.join(part for part in (self.ft.upper(), guide, self.later, self.base) if part)

    @property
    def key(self) -> str:
        "The name of the cell's folder"
        lam = '' if self.lam is None else f'lam{self.lam:g}'
        return '_'.join(filter(None, (self._name.lower(), lam, f'{self.shot}shot', self.unseen, f'seed{self.seed}')))


@dataclass(frozen=True)
class Recipe:
    "How a method is trained"
    arch: str = 'conv4'             # backbone
    size: int = 32                  # side of the images in pixels
    pretrain_epochs: int = 10       # epochs of pre-training by plain classification; 0: none
    pretrain_bs: int = 64           # images per step of pre-training
    pretrain_lr: float = 3e-3       # learning rate of pre-training
    pretrain_patience: int = 0      # end pre-training when accuracy levels off, see `LevelsOff`; 0: after `pretrain_epochs`
    epochs: int = 4
    n_episodes: int = 50            # training episodes per epoch
    n_query: int = 5                # training queries per class
    n_acc: int = 1                  # episodes per step
    optimizer: str = 'adam'         # or sgd: with Nesterov's momentum 0.9 and weight decay 5e-4
    lr: float = 1e-3
    encoder_lr: float = 1.          # the encoder's share of `lr`
    schedule: str = 'one_cycle'     # or flat
    lr_steps: tuple[tuple[int, float], ...] = ()    # of a flat schedule: from which epoch on which learning rate
    val_episodes: int = 0           # validation episodes by which the best epoch is chosen; 0: keep the last weights
    method_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preset:
    "How long and how large to train, and how to test"
    name: str
    recipes: dict[str, Recipe]      # by method: RN, CAN, GNN, PN
    test_episodes: int = 2000
    test_query: int = 16
    test_val: bool = False          # test the seen domain's validation classes too, to choose λ by
    targets: tuple[str, ...] = ()   # folders of --data to test on; none: all
    left_out: tuple[str, ...] = ()  # those that Table IV leaves out in turn, and learns the others' base classes; none: all
    note: str = ''                  # how it differs from the paper, for the report


def _alike(**kwargs: Any) -> dict[str, Recipe]:
    """One recipe for every method, but for the graph network.

    It is narrower than published, since its edges would take most of the time, and it stays at chance for hundreds of
    episodes unless it learns much faster than the encoder that it stands on.
    """
    graph = dict(lr=1e-2, encoder_lr=.03, epochs=6, method_kwargs=dict(n_features=64, width=32))
    return {base: Recipe(**(graph | kwargs if base == 'GNN' else kwargs)) for base in METHODS}


_FWT = Recipe('resnet10', 224, pretrain_epochs=400, pretrain_bs=16, pretrain_lr=1e-3, epochs=400, n_episodes=100, n_query=16,
              schedule='flat', val_episodes=100)    # Tseng et al. 2020, whose training of RN and GNN the paper follows
_CAN = Recipe('resnet12', 84, pretrain_epochs=0, epochs=90, n_episodes=1200, n_query=6, n_acc=4, optimizer='sgd', lr=.1,
              schedule='flat', lr_steps=((60, .006), (70, .0012), (80, .00024)), val_episodes=600)  # Hou et al. 2019
_PHOTOS = Recipe('resnet10', 48, pretrain_epochs=60, pretrain_lr=1e-3, pretrain_patience=3, epochs=10, n_episodes=200, n_query=8,
                 encoder_lr=.1, schedule='flat', lr_steps=((7, 1e-4),), val_episodes=100)
_PHOTOS_GNN = replace(_PHOTOS, lr=1e-2, encoder_lr=.03, lr_steps=((7, 1e-3),))    # else at chance for hundreds of episodes
# as many episodes as `photos` needed to come within a point or two of its end on `val` (seed 0), the rate falling at the end
_PHOTOS_SHORT = {base: replace(_PHOTOS, epochs=4, n_episodes=150, lr_steps=((3, 1e-4),)) for base in ('RN', 'CAN')} | {
    'GNN': replace(_PHOTOS_GNN, epochs=5, n_episodes=160, lr_steps=((4, 1e-3),)),
    'PN': replace(_PHOTOS, epochs=4, n_episodes=25, lr_steps=(), val_episodes=25)}
_PHOTOS_84 = replace(_PHOTOS, size=84, epochs=25, n_episodes=400, lr_steps=((18, 1e-4),))
_TARGETS = ('cub', 'cars', 'places', 'flowers', 'aerial', 'textures', 'traffic_signs')
_DIFFERS = ('The paper trains at 224 px, on all 600 images of a class, for 400 epochs of pre-training and 40,000 episodes; here '
            'it is {} px, 200 images a class and {} episodes. Flowers stand for Plantae, and the birds are those of CUB-200-2010.'
            ' So levels are lower: compare what each step adds.')
PRESETS = {p.name: p for p in (
    Preset('tiny', _alike(size=28, pretrain_epochs=1, epochs=2, n_episodes=3, n_query=3), test_episodes=4, test_query=5),
    Preset('demo', _alike(size=48, pretrain_epochs=5, epochs=3, n_episodes=100, n_query=8), test_episodes=400),
    Preset('small', _alike(), test_episodes=300),
    Preset('paper', {'RN': _FWT, 'GNN': _FWT, 'PN': _FWT, 'CAN': _CAN}),
    Preset('photos', {'RN': _PHOTOS, 'CAN': _PHOTOS, 'PN': _PHOTOS, 'GNN': _PHOTOS_GNN}, test_val=True, targets=_TARGETS,
           left_out=('cub', 'cars', 'places', 'flowers'), note=_DIFFERS.format(48, 2000)),
    # for a GPU
    Preset('photos_84', {'RN': _PHOTOS_84, 'GNN': replace(_PHOTOS_84, lr=1e-2, encoder_lr=.03, lr_steps=((18, 1e-3),))},
           test_val=True, targets=_TARGETS, note=_DIFFERS.format(84, '10,000')),
    Preset('photos_short', _PHOTOS_SHORT, test_val=True, targets=_TARGETS, left_out=('cub', 'cars', 'places', 'flowers'),
           test_episodes=600, note=_DIFFERS.format(48, '600 (GNN 800, ProtoNet 100)')),
)}


def table_cells(
    table: str, # table2, table3, table4, figure3, controls or later
    seeds: int, # Number of seeds
    targets: Sequence[str], # The unseen domains, for the leave-one-out of Table IV
    shots: Sequence[int] = (5, 1), # Shots, in the order of training
) -> list[Cell]:
    "The cells of a table, seed by seed, so that an interrupted run leaves whole seeds"
    if table == 'figure3': shots = (5,)  # as in the paper
    def kinds(shot: int, seed: int) -> list[Cell]:
        if table == 'table2': return [Cell(base, shot, seed, lrp) for base in ('RN', 'CAN') for lrp in (False, True)]
        if table == 'table3': return [Cell('GNN', shot, seed, lrp) for lrp in (False, True)]
        if table == 'figure3': return [Cell(base, shot, seed, lrp) for base in ('RN', 'CAN', 'GNN') for lrp in (False, True)]
        if table == 'table4':
            alone = [Cell('RN', shot, seed), Cell('RN', shot, seed, ft='ft'), Cell('RN', shot, seed, lrp=True)]
            return alone + [Cell('RN', shot, seed, lrp, 'lft', unseen) for unseen in targets for lrp in (False, True)]
        if table == 'controls':
            published = 1. if shot > 1 else .5
            return [Cell('RN', shot, seed), Cell('RN', shot, seed, lrp=True),
                    *(Cell('RN', shot, seed, lrp=True, control=c) for c in CONTROLS),
                    *(Cell('RN', shot, seed, lrp=True, lam=lam) for lam in LAMBDAS if lam != published)]
        if table == 'later':
            plain = [Cell(base, shot, seed) for base in ('GNN', 'PN')]
            ways: list[dict[str, Any]] = [{}, dict(lrp=True), dict(ft='ft'), *(dict(later=way) for way in LATER)]
            return [replace(cell, **way) for cell in plain for way in ways]
        raise ValueError(f'table={table!r}: one of table2, table3, table4, figure3, controls, later')
    return [cell for shot in shots for seed in range(seeds) for cell in kinds(shot, seed)]


def guided_best(
    results: Sequence[dict[str, Any]], # Results of the cells of the table `later`, as `run_cell` returns them
) -> list[Cell]:
    """The cells that add guidance to the best way of `LATER`, for each method and shot.

    The best way has the highest mean accuracy over the seeds on validation classes of the seen domain; targets do not count.
    Empty if these were not tested (a preset without `test_val`).
    """
    accuracies: dict[tuple[str, int], dict[str, list[float]]] = {}
    for r in results:
        own = accuracies.setdefault((r['cell']['base'], r['cell']['shot']), {})
        for row in r['results']:
            if row['domain'] == 'val' and r['cell']['later']: own.setdefault(r['cell']['later'], []).append(row['accuracy'])
    best = {key: max(ways, key=lambda way: sum(ways[way]) / len(ways[way])) for key, ways in accuracies.items() if ways}
    seeds = sorted({r['cell']['seed'] for r in results})
    return [Cell(base, shot, seed, lrp=True, later=way) for (base, shot), way in best.items() for seed in seeds]
