"Encoders: images to feature maps by any backbone"
from .checkpoints import load_reference_state
from .encoder import Encoder, create_encoder

__all__ = ['Encoder', 'create_encoder', 'load_reference_state']
