import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from countvae import MultinomialVAE


@pytest.mark.filterwarnings("ignore::countvae.checks.CountvaeWarning")
@parametrize_with_checks([MultinomialVAE(n_components=2, max_epochs=3, encoder_width=8)])
def test_scikit_learn_finds_nothing_to_object_to(estimator, check):
    check(estimator)
