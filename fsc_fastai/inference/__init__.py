"The deployed classifier: examples in, answers out; saved as plain data"
from .classifier import FewShotClassifier, NotFittedError, Prediction
from .preprocess import Preprocess
