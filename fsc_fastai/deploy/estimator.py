"What scikit-learn asks of an estimator, for a classifier of images: parameters, `clone`, tags"
from __future__ import annotations

from typing import Any, TypeVar

from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import Tags

from .strangeness import check_keep

__all__ = ['ImageEstimator']

_T = TypeVar('_T', bound='ImageEstimator')


class ImageEstimator(ClassifierMixin, BaseEstimator):
    "A classifier of images whose constructor copies the model and checks what it is given, as users of PyTorch expect"
    fitted: Any # Are there examples of enough classes?
    reject: float | None # Below this probability an image is none of the classes
    keep: float | None # Share of images of the classes to answer

    def set_params(self: _T,
        **params: Any, # Arguments, by name
    ) -> _T:
        """Change arguments. Other thresholds hold at once; whatever else changes, the examples are forgotten: `fit` again.

        Raises as the constructor does, and `ValueError` for an unknown name; the classifier then stays as it was.
        """
        known = self.get_params()
        if unknown := sorted(params.keys() - known.keys()):
            raise ValueError(f'no parameter {", ".join(unknown)}: {type(self).__name__} has {", ".join(known)}')
        if any(value is not known[name] for name, value in params.items() if name not in ('reject', 'keep')):
            self.__dict__.update(vars(type(self)(**known | params)))
        check_keep(params.get('keep'))
        self.reject, self.keep = params.get('reject', self.reject), params.get('keep', self.keep)
        return self

    def __sklearn_clone__(self: _T) -> _T: return type(self)(**self.get_params())
    def __sklearn_is_fitted__(self) -> bool: return self.fitted

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.no_validation = False, True  # images, of which a row of numbers is none
        return tags
