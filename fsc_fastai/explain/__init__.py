"Relevance: rules by layer, the engine that applies them, explainers, heatmaps"
from .baselines import GradientXInput, IntegratedGradients
from .composite import Composite, GammaByDepth, alpha2_beta1_flat, epsilon_everywhere, paper_composite, plus_flat
from .engine import leak_report
from .explainer import Explainer
from .grad_cam import GradCAM
from .heatmaps import plot_heatmaps, plot_support_heatmaps, to_heatmaps
from .lrp import LRP
from .occlusion import Occlusion
from .ops import register_op
from .pair import PairExplanation, explain_pair
from .rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from .to_pixels import attention_maps, explain_images
from .weights import relevance_start, relevance_weights

__all__ = [
    'GradientXInput', 'IntegratedGradients', 'GradCAM', 'Occlusion', 'Explainer', 'Composite', 'paper_composite', 'plus_flat',
    'epsilon_everywhere', 'alpha2_beta1_flat', 'GammaByDepth', 'leak_report', 'plot_heatmaps', 'plot_support_heatmaps',
    'to_heatmaps', 'attention_maps', 'explain_images', 'PairExplanation', 'explain_pair', 'LRP', 'register_op', 'AlphaBeta',
    'Epsilon', 'Flat', 'Gamma', 'WSquare', 'ZBox', 'ZPlus', 'relevance_start', 'relevance_weights',
]
