"A fastai Learner for episodes, and what is done with one"
from .core import FSCLearner, encoder_head_splitter, fsc_learner

__all__ = ['FSCLearner', 'encoder_head_splitter', 'fsc_learner']
