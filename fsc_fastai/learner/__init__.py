"A fastai Learner for episodes, and its methods"
from .. import quietly  # noqa: F401, I001  before fastai
from .core import FSCLearner, encoder_head_splitter, fsc_learner

# These add their methods to the learner and the classifier: whoever has one of them, unpickled too, has its methods.
from . import channel_statistics, confusion, distributed, evaluate, explanation  # noqa: F401
from .. import deploy  # noqa: F401

__all__ = ['FSCLearner', 'encoder_head_splitter', 'fsc_learner']
