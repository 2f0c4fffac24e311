"Cross-domain few-shot classification with explanation-guided training, as a fastai library"
import warnings

__version__ = '0.1.0'

with warnings.catch_warnings():
    # torch's, about fastai's use of it: nobody who reads it can do anything about it
    warnings.filterwarnings('ignore', message='`torch.jit.script` is deprecated', category=FutureWarning)
    import fastai.torch_basics  # noqa: F401

# These add their methods to the learner and the classifier: whoever has one of them, unpickled too, has its methods.
from . import deploy  # noqa: E402, F401
from .learner import channel_statistics, confusion, distributed, evaluate, explanation  # noqa: E402, F401
