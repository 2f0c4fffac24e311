"Heads, which keep a method with a fixed support set, and adaptations of a model to its support: one per file"
from .base import Adaptation, get_adaptation, list_adaptations, register_adaptation
from .bdcspn import BDCSPN
from .distribution_calibration import DistributionCalibration
from .episode_tune import EpisodeTune
from .feature_net import FeatureNet
from .features import FeatureMethod
from .fine_tune import FineTune
from .graph_head import GraphHead
from .label_propagation import LabelPropagation
from .laplacian_shot import LaplacianShot
from .linear import LDAHead, LogisticHead, RidgeHead
from .linear_head import LinearHead
from .lora import LoRA
from .pa import PA
from .pmf import PMF
from .prototypes import TransductiveTuning, TunedPrototypes
from .pt_map import PTMAP
from .relation_head import RelationHead
from .simple_shot import SimpleShot, SupportCentred
from .tim import TIM, TIMADM
from .tip_adapter import TipAdapter
from .transduction import SelfTraining
from .tsa import TSA

__all__ = [
    'Adaptation', 'BDCSPN', 'DistributionCalibration', 'EpisodeTune', 'FeatureMethod', 'FeatureNet', 'FineTune', 'GraphHead',
    'LDAHead', 'LabelPropagation', 'LaplacianShot', 'LinearHead', 'LoRA', 'LogisticHead', 'PA', 'PMF', 'PTMAP', 'RelationHead',
    'RidgeHead', 'SelfTraining', 'SimpleShot', 'SupportCentred', 'TIM', 'TIMADM', 'TSA', 'TipAdapter', 'TransductiveTuning',
    'TunedPrototypes', 'get_adaptation', 'list_adaptations', 'register_adaptation',
]
