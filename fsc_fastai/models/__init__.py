"Backbones and few-shot models: encode, process, classify"
from .base import FewShotModel, Processed, class_means, episode_way
from .cross_attention import CrossAttentionNet
from .encoder import Encoder, create_encoder
from .factory import create_fsc_model, list_methods, register_method
from .graph import GNNNet
from .matching import MatchingNet
from .pairs import LabelledPairs, Pairs, pair_parts
from .proto import ProtoNet
from .reference import load_reference_state
from .relation import RelationNet

__all__ = [
    'FewShotModel', 'Processed', 'class_means', 'episode_way', 'Pairs', 'LabelledPairs', 'pair_parts',
    'CrossAttentionNet', 'Encoder', 'create_encoder', 'create_fsc_model', 'list_methods',
    'register_method', 'GNNNet', 'MatchingNet', 'ProtoNet', 'load_reference_state', 'RelationNet',
]
