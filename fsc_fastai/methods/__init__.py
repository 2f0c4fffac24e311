"Process and classify: the few-shot methods, one per file"
from .base import FewShotModel, Processed, class_means, episode_way
from .cross_attention import CrossAttentionNet
from .feat import FEAT
from .graph import GNNNet
from .matching import MatchingNet
from .pairs import LabelledPairs, Pairs, pair_parts
from .proto import ProtoNet
from .registry import create_fsc_model, list_methods, register_method
from .relation import RelationNet

__all__ = [
    'FEAT', 'CrossAttentionNet', 'FewShotModel', 'GNNNet', 'LabelledPairs', 'MatchingNet', 'Pairs', 'Processed',
    'ProtoNet', 'RelationNet', 'class_means', 'create_fsc_model', 'episode_way', 'list_methods',
    'pair_parts', 'register_method',
]

from .. import adapt  # noqa: E402, F401  whose heads say which methods they stand for
