"""The tables and the figure of docs/explanations.md: which explainers are faithful.

    python -m docs.explanations                                        # on glyphs: models that the command trains itself
    python -m docs.explanations photos --photos FOLDER --encoder FILE  # class folders of photographs and weights of one's own
    python -m docs.explanations photos … --method relation --weights FILE --domains cub=FOLDER --seed 1

What was measured is kept in results/faithfulness, a row an episode and explainer. A call with another seed or domain adds to it;
the page is written from all of it.
"""
from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.torch_core import set_seed
from safetensors.torch import load_file

from fsc_fastai.data.augment import episode_transforms
from fsc_fastai.data.glyphs import untar_glyphs
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.encode import create_encoder
from fsc_fastai.explain import (
    LRP,
    GammaByDepth,
    GradCAM,
    GradientXInput,
    IntegratedGradients,
    Occlusion,
    ZBox,
    alpha2_beta1_flat,
    epsilon_everywhere,
    plus_flat,
)
from fsc_fastai.learner.core import FSCLearner, fsc_learner
from fsc_fastai.learner.faithfulness import plot_removal
from fsc_fastai.learner.metrics import ci95
from fsc_fastai.learner.pretrain import pretrain_encoder
from fsc_fastai.learner.results import save_figure
from fsc_fastai.methods import ProtoNet

__all__ = ['explainers', 'table_of']

HERE = Path(__file__).parent
TABLES = HERE.parent/'results'/'faithfulness'
PAGE = HERE/'explanations.md'
# The support side costs as much as all else, so that it is measured for these alone
OF_SUPPORT = ('LRP as published', 'LRP, contrast', 'contrast, ε everywhere', 'gradient × input, contrast')
DRAWN = ('LRP as published', 'LRP, contrast', 'gradient × input, contrast', 'occlusion, contrast')
# What is measured on every photograph model: one of each kind, as those of a kind were alike in a first measurement
LEADING = (*OF_SUPPORT, 'contrast, z⁺ and flat', 'contrast, α2β1 and flat', 'contrast, γ by depth, folded norms',
           'integrated gradients, contrast', 'integrated gradients of 4 steps, contrast', 'Grad-CAM', 'occlusion, contrast')
KEPT = dict(gap=('query', 'gap', None, 'all'), gap_support=('support', 'gap', None, 'all'), **{
    measure: ('query', measure, None, '') for measure in ('mass', 'pointing', 'grid', 'randomised', 'passes')})


def explainers(
    learn: FSCLearner, # Whose loaders normalise
    patch: int = 8, # Side of the patches that are removed
) -> dict[str, Any]:
    "What is compared, by name; the first is the reference"
    low, high = _box(learn)
    return {
        'LRP as published': LRP.published(),
        'LRP, contrast': LRP(start='contrast'),
        'contrast, R-form': LRP(start='contrast', form='R'),
        'contrast, signed norms': LRP(start='contrast', norm='signed'),
        'contrast, folded norms': LRP(start='contrast', norm='fold'),
        'contrast, z⁺ and flat': LRP(start='contrast', encoder=plus_flat()),
        'contrast, α2β1 and flat': LRP(start='contrast', encoder=alpha2_beta1_flat()),
        'contrast, z^B at the pixels': LRP(start='contrast', encoder={0: ZBox(low, high)}),
        'contrast, γ by depth': LRP(start='contrast', encoder=GammaByDepth()),
        'contrast, γ by depth, folded norms': LRP(start='contrast', encoder=GammaByDepth(), norm='fold'),
        'contrast, ε in the encoder': LRP(start='contrast', encoder=epsilon_everywhere(), norm='fold'),
        'contrast, ε everywhere': LRP.faithful(),
        'gradient × input, R_c': GradientXInput(),
        'gradient × input, contrast': GradientXInput(start='contrast'),
        'integrated gradients, contrast': IntegratedGradients(start='contrast'),
        'integrated gradients of 4 steps, contrast': IntegratedGradients(4, start='contrast'),
        'Grad-CAM': GradCAM(),
        'occlusion, R_c': Occlusion(patch),
        'occlusion, contrast': Occlusion(patch, start='contrast'),
    }


def of_transformers(
    patch: int = 8, # Side of the patches that are removed
) -> dict[str, Any]:
    "What is compared on a transformer, by name"
    return {
        'LRP as published': LRP.published(),
        'LRP, contrast': LRP(start='contrast'),
        'contrast, AttnLRP': LRP(start='contrast', attention='attnlrp'),
        'contrast, AttnLRP, flat': LRP(start='contrast', attention='attnlrp', encoder=plus_flat()),
        'contrast, AttnLRP, γ by depth': LRP(start='contrast', attention='attnlrp', encoder=GammaByDepth()),
        'gradient × input, contrast': GradientXInput(start='contrast'),
        'integrated gradients, contrast': IntegratedGradients(start='contrast'),
        'Grad-CAM': GradCAM(),
        'occlusion, contrast': Occlusion(patch, start='contrast'),
    }


def _box(learn: FSCLearner) -> tuple[torch.Tensor, torch.Tensor]:
    "The smallest and the largest value of a normalised pixel"
    norm = next(t for t in learn.dls.valid.after_batch.fs if hasattr(t, 'mean') and hasattr(t, 'std'))
    mean, std = norm.mean.cpu(), norm.std.cpu()
    return ((0 - mean) / std)[0], ((1 - mean) / std)[0]


def glyph_learners(epochs: int, size: int = 48) -> dict[str, FSCLearner]:
    "Models on Latin glyphs, the encoder trained to classify those of `base`"
    unmirrored = episode_transforms(size, do_flip=False)[1]
    dls = EpisodeDataLoaders.from_folder(untar_glyphs(progress=False), n_way=5, n_shot=1, n_query=8,
                                         n_episodes=60, size=size, batch_tfms=unmirrored, verify=False)
    set_seed(0)
    conv4 = pretrain_encoder(dls, create_encoder('conv4', img_size=size), epochs=epochs)
    kwargs = dict(patch_size=6, depth=4, embed_dim=96, num_heads=3)
    vit = create_encoder('vit_tiny_patch16_224', img_size=size, **kwargs)
    return {'glyphs, conv4, ProtoNet': fsc_learner(dls, 'conv4', ProtoNet, pretrained=conv4),
            'glyphs, small ViT, ProtoNet': fsc_learner(dls, pretrain_encoder(dls, vit, epochs=epochs), ProtoNet)}


def photo_learner(
    photos: Path, # Folder with base, val and novel
    encoder: Path | None, # Weights of the encoder; None: timm's
    arch: str = 'resnet10', # Its architecture
    size: int = 48, # Side of the images
    method: str = 'proto', # Of the model
    weights: Path | None = None, # Of the whole model, where it was trained
) -> FSCLearner:
    "A model of photographs that was trained elsewhere"
    dls = EpisodeDataLoaders.from_folder(photos, n_way=5, n_shot=1, n_query=8, size=size, arch=arch, verify=False)
    state: Any = encoder
    if encoder and encoder.suffix != '.safetensors': state = torch.load(encoder, map_location='cpu', weights_only=True)
    learn = fsc_learner(dls, arch, method, pretrained=state or True)
    if weights: learn.model.load_state_dict(load_file(weights))
    return learn


def table_file(
    name: str, # Of a model
) -> Path:
    "Where what was measured of it is kept"
    return TABLES/f'{re.sub("[^a-z0-9]+", "-", name.lower())}.csv'


def measure(
    name: str, # Of the model
    learn: FSCLearner, # Trained
    compared: dict[str, Any], # Explainers
    n_episodes: int, # Of each domain
    domains: Any = None, # As in `learn.faithfulness`; None: its validation classes
    *,
    seed: int = 0, # Of the episodes
    patch: int = 8, # Side of the patches that are removed, and period of the grid
    n_randomised: int = 0, # Episodes on which weights are shuffled
) -> pd.DataFrame:
    "Faithfulness, with its curves; each episode's is added to the table of the model"
    how: dict[str, Any] = dict(n_episodes=n_episodes, n_randomised=n_randomised, patches=(patch,), replace=('mean', 'blur'),
                               steps=4, period=patch, seed=seed)
    sides: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    for explainer, e in compared.items(): sides[explainer in OF_SUPPORT][explainer] = e
    tables = [learn.faithfulness(some, domains, support=support, **how) for support, some in sides.items() if some]
    rows = [dict(model=name, domain=domain, seed=seed, episode=k, explainer=explainer)
            | {column: found.get(key) for column, key in KEPT.items()}
            for table in tables for domain, of_domain in table.attrs['episodes'].items()
            for explainer, episodes in of_domain.items() for k, found in enumerate(episodes)]
    file, of = table_file(name), ['domain', 'seed', 'episode', 'explainer']
    file.parent.mkdir(parents=True, exist_ok=True)
    kept = [pd.read_csv(file)] if file.exists() else []
    pd.concat([*kept, pd.DataFrame(rows).round(4)]).drop_duplicates(of, keep='last').to_csv(file, index=False)
    table = pd.concat(tables, ignore_index=True)
    table.attrs = dict(curves={k: curve for t in tables for k, curve in t.attrs['curves'].items()})
    return table


def _mean(values: pd.Series, sign: str = '', scale: float = 100.) -> str:
    "Mean ± 95 % interval over the episodes"
    values = scale * values.dropna()
    if not len(values): return ''
    return f'{values.mean():{sign}.1f}' + (f' ± {ci95(values.tolist()):.1f}' if len(values) > 1 else '')


def table_of(
    rows: pd.DataFrame, # Of a model, as `measure` keeps them
) -> str:
    "A Markdown table: an explainer a row"
    names = list(dict.fromkeys(rows.explainer))
    episode = ['domain', 'seed', 'episode']
    reference = rows[rows.explainer == names[0]].set_index(episode)
    def line(name: str) -> str:
        own = rows[rows.explainer == name].set_index(episode)
        difference = (own.gap - reference.gap).dropna()
        cells = [name, str(len(own)), _mean(own.gap), '' if name == names[0] else _mean(difference, '+'), _mean(own.gap_support)]
        shares = [f'{100*own[measure].mean():.{digits}f}' for measure, digits in (('mass', 0), ('pointing', 0), ('grid', 1))]
        randomised = '' if own.randomised.isna().all() else f'{own.randomised.mean():.2f}'
        return '| ' + ' | '.join([*cells, *shares, randomised, f'{own.passes.median():.1f}']) + ' |'
    head = ['explainer', 'episodes', 'gap', 'to the first, paired', 'gap, support', 'mass %', 'pointing %', 'grid %',
            'randomised', 'passes']
    return '\n'.join(['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head), *map(line, names)])


def write_page() -> None:
    "Put the tables between the marks of the page"
    tables = [pd.read_csv(file) for file in sorted(TABLES.glob('*.csv'))]
    def part(rows: pd.DataFrame) -> str:
        counts = rows[rows.explainer == rows.explainer.iloc[0]].groupby('domain', sort=False).size()
        episodes = ', '.join(f'{n} episodes of {domain}' for domain, n in counts.items())
        return f'**{rows.model.iloc[0]}**, 5-way 1-shot, 5 queries each: {episodes}\n\n{table_of(rows)}'
    before, rest = PAGE.read_text(encoding='utf-8').split('<!-- tables -->\n')
    _, after = rest.split('<!-- end of tables -->\n')
    found = '\n\n'.join(map(part, tables))
    PAGE.write_text(f'{before}<!-- tables -->\n{found}\n<!-- end of tables -->\n{after}', encoding='utf-8')


def draw(
    table: pd.DataFrame, # Of `learn.faithfulness`, or with its curves
) -> None:
    "The figure of the page: curves of some explainers"
    table.attrs['curves'] = {k: curve for k, curve in table.attrs['curves'].items() if k[1] in DRAWN}
    plot_removal(table)
    save_figure(PAGE.with_suffix('.png'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', nargs='?', default='glyphs', choices=['glyphs', 'photos', 'page'])
    parser.add_argument('--photos', type=Path, help='folder with base, val and novel')
    parser.add_argument('--encoder', type=Path, help='weights of the encoder')
    parser.add_argument('--arch', default='resnet10', help='of the encoder')
    parser.add_argument('--size', type=int, default=48, help='side of the images')
    parser.add_argument('--method', default='proto', help='of the model')
    parser.add_argument('--weights', type=Path, help='of the whole model, where it was trained')
    parser.add_argument('--name', help='of the model in the table')
    parser.add_argument('--domains', nargs='+', help='NAME=FOLDER of other validation classes')
    parser.add_argument('--episodes', type=int, default=20, help='of each domain')
    parser.add_argument('--seed', type=int, default=0, help='of the episodes: those of another one are added')
    parser.add_argument('--all', action='store_true', help='all explainers on photographs, not one of each kind')
    parser.add_argument('--epochs', type=int, default=5, help='of pre-training on glyphs')
    parser.add_argument('--randomised', type=int, default=1, help='episodes on which weights are shuffled')
    args = parser.parse_args()
    learners, domains = {}, dict(o.split('=', 1) for o in args.domains) if args.domains else None
    if args.what == 'glyphs': learners = glyph_learners(args.epochs)
    elif args.what == 'photos':
        learn = photo_learner(args.photos, args.encoder, args.arch, args.size, args.method, args.weights)
        learners = {args.name or f'photographs, {args.arch} at {args.size} px, {type(learn.model).__name__}': learn}
    for name, learn in learners.items():
        patch = max(8, args.size // 8)
        compared = of_transformers(patch) if 'ViT' in name else explainers(learn, patch)
        if args.what == 'photos' and not args.all: compared = {k: compared[k] for k in compared if k in LEADING}
        with learn.no_bar():
            table = measure(name, learn, compared, args.episodes, domains,
                            seed=args.seed, patch=patch, n_randomised=args.randomised)
        print(table_of(pd.read_csv(table_file(name))), flush=True)
        if 'ViT' not in name: draw(table)
    write_page()


if __name__ == '__main__': main()
