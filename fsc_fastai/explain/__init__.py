"Relevance: rules by layer, the engine that applies them, explainers, heatmaps"
from .composite import Composite, paper_composite
from .lrp import LRP
from .ops import register_op
from .rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from .start import relevance_start, relevance_weights
