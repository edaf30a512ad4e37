import re
import warnings

import numpy as np
import pytest
from jaxtyping import TypeCheckError
from scipy.sparse import csr_array

from countvae.checks import check_counts, check_unique, examples
from countvae.errors import CountvaeWarning, InputError

SAMPLES = ["s1", "s2", "s3"]
FEATURES = ["a", "b"]
GOOD = np.array([[3.0, 0.0], [1.0, 2.0], [0.0, 7.0]])


def with_value(value):
    counts = GOOD.copy()
    counts[1, 1] = value
    return csr_array(counts)


def normalised(log, scale):
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 3.0, (30, 40)))
    counts[:, 0] += 1
    return csr_array(log(counts * scale(counts.sum(axis=1, keepdims=True))))


def test_counts_pass_in_silence():
    with warnings.catch_warnings(action="error"):
        for dtype in (np.int32, np.uint8, np.float32, np.float64):
            check_counts(csr_array(GOOD.astype(dtype)), SAMPLES, FEATURES)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (
            -1,
            "table.biom: expected values >= 0; got -1 in sample 's2', feature 'b'"
            " (Negative values in data are not counts).",
        ),
        (
            np.nan,
            "table.biom: expected finite values, not NaN or inf;"
            " got nan in sample 's2', feature 'b'.",
        ),
        (
            np.inf,
            "table.biom: expected finite values, not NaN or inf;"
            " got inf in sample 's2', feature 'b'.",
        ),
        (
            0.5,
            "table.biom: expected whole numbers; got 0.5 in sample 's2', feature 'b'"
            " (1 of 4 values are fractional).",
        ),
    ],
)
def test_a_bad_value_is_named_with_its_sample_and_feature(value, sentence):
    with pytest.raises(InputError, match=f"^{re.escape(sentence)}$"):
        check_counts(with_value(value), SAMPLES, FEATURES, argument="table.biom")


def test_without_ids_samples_and_features_go_by_number():
    with pytest.raises(ValueError, match="in sample 1, feature 1 "):
        check_counts(with_value(-1), None, None)


def test_fractional_counts_are_refused_warned_of_or_let_through_as_asked():
    with pytest.warns(CountvaeWarning, match="expected whole numbers; got 0.5"):
        check_counts(with_value(0.5), SAMPLES, FEATURES, fractional="warn")
    check_counts(with_value(0.5), SAMPLES, FEATURES, fractional="ignore")


@pytest.mark.parametrize(
    "log", [np.log1p, lambda x: np.log2(1 + x), lambda x: np.log10(1 + x)], ids=["e", "2", "10"]
)
@pytest.mark.parametrize(
    "scale", [lambda t: 1.0, lambda t: 1e4 / t, lambda t: 1e6 / t], ids=["raw", "1e4", "1e6"]
)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fractional", ["error", "warn"])
def test_logarithms_are_called_so_whatever_base_and_scale(log, scale, dtype, fractional):
    counts = normalised(log, scale).astype(dtype)
    for part in (counts, counts[:, :20]):  # a selection of features, sums no longer equal
        with pytest.raises(InputError, match="looks log-normalised; pass raw counts"):
            check_counts(part, None, None, fractional=fractional)


def test_merely_fractional_counts_are_not_called_logarithms():
    rng = np.random.default_rng(1)
    counts = rng.poisson(2.0, (30, 40)).astype(float)
    for corrected in (
        counts * rng.uniform(0.8, 1, counts.shape),  # ambient reads taken off
        counts / 2,  # reads shared between two features
        rng.uniform(0, 10, counts.shape),
        np.abs(rng.normal(size=counts.shape)),
    ):
        with pytest.warns(CountvaeWarning, match="expected whole numbers"):
            check_counts(csr_array(corrected), None, None, fractional="warn", empty_samples="warn")


def test_proportions_are_called_so():
    with pytest.raises(InputError, match="same sum: pass counts, not proportions"):
        check_counts(normalised(lambda x: x, lambda t: 1 / t), None, None)


def test_empty_samples_are_counted_and_three_of_them_named():
    counts = csr_array([[1, 0], [0, 0], [0, 0], [0, 0], [0, 0]])
    ids = ["s1", "s2", "s3", "s4", "s5"]
    sentence = "in every sample; 4 of 5 have none: 's2', 's3', 's4' and 1 more."
    with pytest.raises(InputError, match=sentence):
        check_counts(counts, ids, FEATURES)
    with pytest.warns(CountvaeWarning, match=sentence):
        check_counts(counts, ids, FEATURES, empty_samples="warn")
    check_counts(counts, ids, FEATURES, empty_samples="ignore")


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [((0, 2), "n_samples = 0"), ((3, 0), "n_features = 0"), ((3, 1), "n_features = 1")],
)
def test_a_table_needs_a_sample_and_two_features(shape, sentence):
    with pytest.raises(InputError, match=sentence):
        check_counts(csr_array(np.ones(shape)), None, None)


def test_explicit_zeros_are_not_reads():
    counts = csr_array((np.array([0.0, 1.0]), np.array([0, 0]), np.array([0, 1, 2])), shape=(2, 2))
    with pytest.raises(InputError, match="1 of 2 has none: 's1'"):
        check_counts(counts, SAMPLES[:2], FEATURES)


def test_ids_given_twice_are_named():
    check_unique(["a", "b"], "x: ids")
    with pytest.raises(InputError, match="x: ids must be unique; got more than once 'b', 'a'"):
        check_unique(["a", "b", "b", "a", "b", "c"], "x: ids")


def test_examples_stop_at_three():
    assert examples([1, 2, 3]) == "1, 2, 3"
    assert examples(["a", "b", "c", "d"]) == "'a', 'b', 'c' and 1 more"


@pytest.mark.skipif("not config.getoption('--jaxtyping-packages')", reason="nothing is checked")
def test_shapes_and_types_are_checked_while_tests_run():
    with pytest.raises(TypeCheckError):
        check_counts(np.ones((2, 2)), None, None)
