"The deployed classifier: examples in, answers out; saved as plain data"
from . import calibrate, explain, learner, onnx  # noqa: F401  these add their methods to classifier and learner
from .calibrate import Calibration
from .checks import BundleError
from .classifier import FewShotClassifier, NotFittedError, Prediction
from .explain import Explanation
from .learner import learner_from_bundle
from .preprocess import Preprocess

__all__ = ['FewShotClassifier', 'Prediction', 'NotFittedError', 'Preprocess', 'Calibration', 'Explanation', 'BundleError',
           'learner_from_bundle']
