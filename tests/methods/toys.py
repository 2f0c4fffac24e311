"Small models and episodes for the tests of this folder"
import torch
from torch import nn

from fsc_fastai.data.episode import EpisodeLabel
from fsc_fastai.encode.encoder import Encoder
from fsc_fastai.methods import create_fsc_model

METHODS = ['relation', 'can', 'gnn', 'proto', 'matching']
"Every method, by the name that is shown with a failing test; FEAT is tested where adaptations make it"


def feature_encoder(channels, size):
    "An encoder that takes feature maps for images, so that a method can be tested on maps"
    return Encoder(nn.Identity(), size, channels)


def feature_model(method, channels=6, size=5, seed=0, **kwargs):
    "A method on feature maps, in evaluation mode"
    torch.manual_seed(seed)
    return create_fsc_model(method, nn.Identity(), img_size=size, in_chans=channels, **kwargs).eval()


def processed(method, **kwargs):
    "A method on feature maps, and what it makes of `feature_episode`"
    model, (support, y, query, _) = feature_model(method, **kwargs), feature_episode()
    return model, model.process(support, y, query)


def feature_episode(n_way=5, n_shot=2, n_query=3, channels=6, size=5, seed=1, classes=None):
    "Maps of an episode, class-major: `(support_x, support_y, query_x, query_y)`"
    g = torch.Generator().manual_seed(seed)
    classes = tuple(range(n_way)) if classes is None else classes
    def labels(n): return EpisodeLabel(torch.arange(n_way).repeat_interleave(n), classes=classes)
    def maps(n): return torch.randn(n_way * n, channels, size, size, generator=g).abs()
    return maps(n_shot), labels(n_shot), maps(n_query), labels(n_query)
