"Explanation-guided training, and LRP-CAN as it was released; its controls are in `lrp_controls`"
from .guided_loss import guided_loss
from .lrp_can import PublishedCANPass
from .lrp_guided import LRPGuidedCallback, StepLoss

__all__ = ['LRPGuidedCallback', 'PublishedCANPass', 'StepLoss', 'guided_loss']
