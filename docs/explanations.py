"""The tables and the figure of docs/explanations.md: which explainers are faithful.

    python -m docs.explanations                                        # on glyphs: models that the command trains itself
    python -m docs.explanations photos --photos FOLDER --encoder FILE  # class folders of photographs and weights of one's own

What was measured is kept as a table in results/faithfulness, so that the page can be written from all of them at any time.
"""
from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from fastai.torch_core import set_seed
from torch import nn

from fsc_fastai.data.augment import episode_transforms
from fsc_fastai.data.glyphs import untar_glyphs
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.encode import create_encoder
from fsc_fastai.explain import (
    LRP,
    Epsilon,
    GammaByDepth,
    GradCAM,
    GradientXInput,
    IntegratedGradients,
    Occlusion,
    ZBox,
    alpha2_beta1_flat,
    plus_flat,
)
from fsc_fastai.learner.core import FSCLearner, fsc_learner
from fsc_fastai.learner.faithfulness import plot_removal
from fsc_fastai.learner.pretrain import pretrain_encoder
from fsc_fastai.learner.results import save_figure
from fsc_fastai.methods import ProtoNet

__all__ = ['explainers', 'table_of']

HERE = Path(__file__).parent
TABLES = HERE.parent/'results'/'faithfulness'
PAGE = HERE/'explanations.md'
HOW: dict[str, Any] = dict(patches=(8,), replace=('mean', 'blur'), steps=5)
# The support side costs as much as all else, so that it is measured for these alone
OF_SUPPORT = ('LRP as published', 'LRP, contrast', 'contrast, z⁺ and flat', 'gradient × input, contrast')
DRAWN = ('LRP as published', 'LRP, contrast', 'gradient × input, contrast', 'occlusion, 8 px')


def explainers(
    learn: FSCLearner, # Whose loaders normalise
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
        'contrast, ε': LRP(start='contrast', encoder={nn.Conv2d: Epsilon()}, norm='fold'),
        'gradient × input, R_c': GradientXInput(),
        'gradient × input, contrast': GradientXInput(start='contrast'),
        'integrated gradients, contrast': IntegratedGradients(start='contrast'),
        'Grad-CAM': GradCAM(),
        'occlusion, 8 px': Occlusion(8),
    }


def of_transformers() -> dict[str, Any]:
    "What is compared on a transformer"
    return {
        'LRP as published': LRP.published(),
        'LRP, contrast': LRP(start='contrast'),
        'contrast, AttnLRP': LRP(start='contrast', attention='attnlrp'),
        'contrast, AttnLRP, flat': LRP(start='contrast', attention='attnlrp', encoder=plus_flat()),
        'contrast, AttnLRP, γ by depth': LRP(start='contrast', attention='attnlrp', encoder=GammaByDepth()),
        'gradient × input, contrast': GradientXInput(start='contrast'),
        'integrated gradients, contrast': IntegratedGradients(start='contrast'),
        'Grad-CAM': GradCAM(),
        'occlusion, 8 px': Occlusion(8),
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


def photo_learners(photos: Path, encoder: Path | None, arch: str, size: int) -> dict[str, FSCLearner]:
    "A ProtoNet on photographs, with an encoder that was trained elsewhere"
    dls = EpisodeDataLoaders.from_folder(photos, n_way=5, n_shot=1, n_query=8, size=size, verify=False)
    state = torch.load(encoder, map_location='cpu', weights_only=True) if encoder and encoder.suffix == '.pt' else encoder
    return {f'photographs, {arch} at {size} px, ProtoNet': fsc_learner(dls, arch, ProtoNet, pretrained=state or True)}


def measure(
    name: str, # Of the table
    learn: FSCLearner, # Trained
    n_episodes: int, # Of its validation classes
    compared: dict[str, Any], # Explainers
    n_randomised: int = 1, # Episodes on which weights are shuffled
) -> pd.DataFrame:
    "Faithfulness on validation classes, kept in results/faithfulness"
    table = learn.faithfulness(compared, n_episodes=n_episodes, n_randomised=n_randomised, **HOW)
    on_support = learn.faithfulness({k: e for k, e in compared.items() if k in OF_SUPPORT}, n_episodes=n_episodes, n_randomised=0,
                                    support=True, **HOW)
    curves = table.attrs['curves'] | on_support.attrs['curves']
    table = pd.concat([table, on_support[on_support.side == 'support']], ignore_index=True)
    table.attrs = dict(curves=curves)
    table.insert(0, 'model', name)
    table.insert(1, 'n_episodes', n_episodes)
    TABLES.mkdir(parents=True, exist_ok=True)
    table.round(5).to_csv(TABLES/f'{re.sub("[^a-z0-9]+", "-", name.lower())}.csv', index=False)
    return table


def table_of(
    table: pd.DataFrame, # Of `measure`
) -> str:
    "A Markdown table: an explainer a row"
    def row(name: str) -> str:
        at = table[(table.explainer == name) & table.replaced_by.isin(['all', ''])].set_index(['side', 'measure'])
        gap, support = at.loc[('query', 'gap')], at.loc[('support', 'gap')] if ('support', 'gap') in at.index else None
        cells = [name, f'{100*gap.value:.1f} ± {100*gap.ci95:.1f}', f'{100*gap.difference:+.1f} ± {100*gap.difference_ci95:.1f}',
                 '' if support is None else f'{100*support.value:.1f} ± {100*support.ci95:.1f}']
        cells += [f'{100*at.value["query", m]:.0f}' for m in ('mass', 'pointing')]
        cells += [f'{100*at.value["query", "grid"]:.1f}',
                  f'{at.value["query", "randomised"]:.2f}' if ('query', 'randomised') in at.index else '',
                  f'{at.value["query", "passes"]:.1f}']
        return '| ' + ' | '.join(cells) + ' |'
    head = ['explainer', 'gap', 'to the first, paired', 'gap, support', 'mass %', 'pointing %', 'grid %', 'randomised', 'passes']
    names = list(dict.fromkeys(table.explainer))
    return '\n'.join(['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head), *map(row, names)])


def write_page() -> None:
    "Put the tables between the marks of the page"
    tables = [pd.read_csv(file, keep_default_na=False, na_values=['nan']) for file in sorted(TABLES.glob('*.csv'))]
    def part(t: pd.DataFrame) -> str:
        return f'**{t.model.iloc[0]}**, 5-way 1-shot, {t.n_episodes.iloc[0]} episodes of 5 queries\n\n{table_of(t)}'
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
    parser.add_argument('--arch', default='resnet10')
    parser.add_argument('--size', type=int, default=48)
    parser.add_argument('--episodes', type=int, default=20)
    parser.add_argument('--epochs', type=int, default=5, help='of pre-training on glyphs')
    parser.add_argument('--randomised', type=int, default=1, help='episodes on which weights are shuffled')
    args = parser.parse_args()
    learners = {}
    if args.what == 'glyphs': learners = glyph_learners(args.epochs)
    elif args.what == 'photos': learners = photo_learners(args.photos, args.encoder, args.arch, args.size)
    for name, learn in learners.items():
        compared = of_transformers() if 'ViT' in name else explainers(learn)
        with learn.no_bar(): table = measure(name, learn, args.episodes, compared, args.randomised)
        print(table_of(table), flush=True)
        if 'ViT' not in name: draw(table)
    write_page()


if __name__ == '__main__': main()
