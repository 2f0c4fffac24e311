"The pages of the API reference: which module is on which, in which order"
from __future__ import annotations

from pathlib import Path

from .docments import modules

__all__ = ['PAGES', 'write_pages']

# Page, its title, its first lines, what its modules start with, and those that come first
PAGES = (
    ('data', 'Episodes and data', 'Images, episodes, loaders and domains.', ('data.',),
     ('loaders', 'block', 'splitter', 'domains', 'glyphs', 'augment', 'episode')),
    ('encode', 'Encode', 'Images to feature maps.', ('encode.',), ('encoder', 'backbones', 'checkpoints')),
    ('methods', 'Methods', 'Process and classify.', ('methods.',), ('base', 'registry')),
    ('explain', 'Explanations', 'Relevance rules, the engine that applies them, explainers, heatmaps.', ('explain.',),
     ('lrp', 'baselines', 'rules', 'composite', 'weights', 'to_pixels', 'heatmaps', 'pair', 'overlay')),
    ('adapt', 'Adaptation', 'A method beside its support, and what adapts to the support.', ('adapt.',), ('features', 'head')),
    ('callback', 'Callbacks', 'One idea per file.', ('callback.',),
     ('guided.lrp_guided', 'lft.fixed', 'lft.learned', 'accumulate', 'resume')),
    ('deploy', 'Deployed classifier', 'Examples in, answers out.', ('deploy.',),
     ('classifier', 'fitting', 'set_support', 'calibrate', 'relevance')),
    ('reproduce', 'Reproduction', "The paper's tables.", ('reproduce.',), ()),
    ('commands', 'Commands', 'Each has `--help`.', ('commands.',), ('fsc_train', 'fsc_eval', 'fsc_explain')),
    ('learner', 'Learner and evaluation', '`fsc_learner`, and what is done with a learner.', ('learner.',),
     ('core', 'learner', 'pretrain', 'evaluate', 'episode_scores')),
    ('common', 'What all share', 'Tensors, files and drawings.', ('',), ('tensors',)),
)


def write_pages(
    folder: Path, # Of the pages; made if it is not there
) -> None:
    "Write a Markdown file a page: every module of the package is on the first page whose start it has"
    left = [name.removeprefix('fsc_fastai.') for name in modules()]
    folder.mkdir(exist_ok=True)
    for page, title, intro, starts, first in PAGES:
        mine = [name for name in left if name.startswith(starts)]
        left = [name for name in left if name not in mine]
        order = {starts[0] + name if starts[0].endswith('.') else name: i for i, name in enumerate(first)}
        mine.sort(key=lambda name: (order.get(name, len(order)), name))
        parts = [f'## `{name}`\n\n```{{eval-rst}}\n.. automodule:: fsc_fastai.{name}\n```\n' for name in mine]
        text = '\n'.join([f'# {title}\n\n{intro}\n', *parts])
        file = folder/f'{page}.md'
        if not file.exists() or file.read_text(encoding='utf-8') != text: file.write_text(text, encoding='utf-8')
