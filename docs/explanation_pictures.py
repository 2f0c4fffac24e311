"The pictures of pairs.md, of glyphs and an encoder that is trained within minutes: `python -m docs.explanation_pictures`"
from __future__ import annotations

from pathlib import Path

from fastai.data.transforms import get_image_files
from fastai.torch_core import set_seed

from fsc_fastai.data.augment import episode_transforms
from fsc_fastai.data.glyphs import untar_glyphs
from fsc_fastai.data.loaders import EpisodeDataLoaders
from fsc_fastai.encode.encoder import create_encoder
from fsc_fastai.explain import LRP
from fsc_fastai.learner.core import fsc_learner
from fsc_fastai.learner.pretrain import pretrain_encoder

__all__ = ['pictures']


def pictures(
    folder: Path, # Where to write them
) -> None:
    "`pair.png`, two images of a letter that the encoder was not trained on, and `against.png`, that letter and another one"
    set_seed(42)
    path = untar_glyphs(n_classes=66, n_images=30, size=48, progress=False)
    unmirrored = episode_transforms(42, do_flip=False)[1]
    dls = EpisodeDataLoaders.from_folder(path, n_way=5, n_shot=5, n_query=4, n_episodes=30, size=42, batch_tfms=unmirrored)
    encoder = pretrain_encoder(dls, create_encoder('conv4np', img_size=42), epochs=6)
    learn = fsc_learner(dls, encoder, 'proto', method_kwargs=dict(distance='cosine'))
    first, second = (get_image_files(o).sorted() for o in sorted((path/'novel').iterdir())[:2])
    learn.explain_pair(first[0], first[1], n_components=None).plot(save=folder/'pair.png')
    names = [o[0].parent.name.split('_')[-1] for o in (first, second)]
    examples = dict(zip(names, (first[2:7], second[2:7])))
    found = learn.explain(first[:2], examples, explainer=LRP.published(), against=names[1])
    found.plot(smooth=1/32, save=folder/'against.png')


if __name__ == '__main__': pictures(Path(__file__).parent)
