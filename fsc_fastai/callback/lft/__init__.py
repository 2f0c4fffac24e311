"Training with feature-wise transformations, fixed or learned on pseudo-unseen domains"
from .fixed import FTCallback
from .learned import LFTCallback

__all__ = ['FTCallback', 'LFTCallback']
