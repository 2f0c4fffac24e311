"The deployed classifier: examples in, answers out; saved as plain data"
from . import calibrate, examples, onnx  # noqa: F401  these add their methods to classifier and learner
from . import relevance as explain
from . import set_support as learner
from .calibrate import Calibration
from .card import ModelCard
from .checks import BundleError
from .classifier import FewShotClassifier, Prediction
from .conformal import PredictionSet
from .fitting import NotFittedError
from .preprocess import Preprocess
from .relevance import Explanation
from .report import Report
from .set_support import learner_from_bundle

__all__ = ['FewShotClassifier', 'Prediction', 'NotFittedError', 'Preprocess', 'Calibration', 'Explanation', 'PredictionSet',
           'Report', 'BundleError', 'ModelCard', 'learner_from_bundle']
