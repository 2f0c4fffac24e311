"scikit-learn's habits: its own checks of an estimator, and what its users do with one"
import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from fsc_fastai.deploy import FewShotClassifier, Preprocess
from fsc_fastai.methods import ProtoNet

from ..methods.toys import feature_encoder
from .toys import COLOURS, classifier, examples, picture

QUERIES = examples(2, first=50)


class OfRows(FewShotClassifier):
    "Takes rows of numbers, the data of scikit-learn's checks, as pictures: each number is the grey of a stripe"
    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.no_validation = True, False
        return tags

    def pictures(self, X, **kwargs):
        grey = np.uint8(127.5 * (1 + np.tanh(validate_data(self, X, **kwargs) / 10)))
        return [np.broadcast_to(row[None, :, None], (4, len(row), 3)) for row in grey]

    def fit(self, X, y):
        _, y = validate_data(self, X, y)
        check_classification_targets(y)
        return super().fit(self.pictures(X, reset=False), y)

    def predict_proba(self, X):
        check_is_fitted(self)
        return super().predict_proba(self.pictures(X, reset=False))

    def predict(self, X): return self.classes_[self.predict_proba(X).argmax(1)]
    def score(self, X, y): return float((self.predict(X) == y).mean())


EXPECTED = {
    'check_no_attributes_set_in_init': 'the head, which computes, and the temperature are there before examples are',
    'check_do_not_raise_errors_in_init_or_set_params': 'the model is copied when it is given: a wrong one is an error at once',
}
"Checks that fail by intent"


@parametrize_with_checks([OfRows(ProtoNet(feature_encoder(3, 8), n_way=2, pool='flatten'), Preprocess(8, 8))],
                         expected_failed_checks=lambda _: EXPECTED)
@pytest.mark.filterwarnings('ignore')
def test_checks_of_scikit_learn(estimator, check): check(estimator)


def test_it_is_a_classifier_of_what_is_no_table():
    known = classifier()
    assert is_classifier(known) and not known.__sklearn_tags__().input_tags.two_d_array
    with pytest.raises(NotFittedError): check_is_fitted(known)
    check_is_fitted(known.fit(*examples()))
    assert 'FewShotClassifier' in known._repr_html_()


def test_several_images_have_labels_and_one_an_answer():
    known = classifier().fit(*examples())
    assert_array_equal(known.predict(QUERIES[0]), QUERIES[1])
    assert known.predict(QUERIES[0]).dtype == known.classes_.dtype
    numbers = classifier().fit(examples()[0], np.repeat([0., 1, 2, 3, 4], 3))  # whole numbers, as pandas reads them beside gaps
    assert_array_equal(numbers.predict(QUERIES[0]), np.repeat(np.arange(5), 2))
    known.reject = 2.
    assert known.predict(QUERIES[0]).tolist() == [None] * 10 and known.predict([]).shape == (0,)


@pytest.mark.parametrize('adapt', [None, 'pa', 'finetune:steps=2'])
def test_a_clone_has_the_trained_model_and_no_examples(adapt):
    trained = classifier('relation')
    known = FewShotClassifier(trained.model, trained.preprocess, .5, adapt).fit(*examples(2))
    other = clone(known)
    assert not other.fitted and other.reject == .5 and other.preprocess == known.preprocess
    assert_allclose(other.fit(*examples(2)).predict_proba(QUERIES[0]), known.predict_proba(QUERIES[0]), atol=1e-6)
    for mine, was in zip(other.get_params()['model'].parameters(), trained.model.parameters(), strict=True):
        assert mine is not was and torch.equal(mine, was)
    assert other.set_params(adapt=None).fit(*examples(2)).predict_proba(QUERIES[0]) == pytest.approx(
        trained.fit(*examples(2)).predict_proba(QUERIES[0]), abs=1e-6)


def test_parameters_are_changed_or_all_stay():
    known = classifier().fit(*examples())
    assert known.set_params(reject=.9) is known and known.fitted and known.reject == .9
    before = known.get_params()
    with pytest.raises(ValueError, match='no parameter shots: FewShotClassifier has model, preprocess, reject, adapt'):
        known.set_params(shots=3, reject=.1)
    with pytest.raises(TypeError, match='3 is no adaptation'): known.set_params(adapt=3, reject=.1)
    with pytest.raises(TypeError, match="a FewShotModel is needed, found 'conv4'"): known.set_params(model='conv4')
    with pytest.raises(TypeError, match='a Preprocess is needed, found 32'): known.set_params(preprocess=32)
    assert known.get_params() == before and known.fitted
    assert not known.set_params(adapt='pa').fitted and known.adapt.name == 'pa' and known.reject == .9


def test_cross_validation_grids_and_pipelines_take_it():
    images, labels = examples(4, ['blue', 'green', 'red'])
    assert_array_equal(cross_val_score(classifier(), images, labels, cv=2), [1, 1])
    found = GridSearchCV(classifier(), {'adapt': [None, 'simple_shot']}, cv=2).fit(images, labels)
    assert found.best_score_ == 1 and found.predict([picture('red', 80)]).tolist() == ['red']
    piped = make_pipeline(FunctionTransformer(lambda files: [o.rotate(90) for o in files]), classifier()).fit(*examples())
    assert piped.score(*QUERIES) == 1 and set(piped.classes_) == set(COLOURS)
