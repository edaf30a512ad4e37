"""The design: the same columns for new samples as for those fitted, and nothing evaluated."""

import numpy as np
import pandas as pd
import pytest

from countvae.design import Design, variables
from countvae.errors import InputError


@pytest.fixture(name="metadata")
def of_six_samples():
    return pd.DataFrame(
        {
            "age": [1.0, 2.0, 3.0, 4.0, 5.0, 9.0],
            "site": ["gut", "skin", "gut", "mouth", "skin", "gut"],
            "fed": [True, False, True, True, False, False],
            "batch 1": list("aabbab"),
        },
        index=[f"s{i}" for i in range(6)],
    )


def test_columns_are_standard_and_named(metadata):
    design = Design.of("~ age + site", metadata)
    assert design.names == ("age", "site[T.mouth]", "site[T.skin]")
    X = design.matrix(metadata)
    np.testing.assert_allclose(X.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(X.std(0), 1)
    np.testing.assert_allclose(X[:, 0], (metadata["age"] - 4) / metadata["age"].std(ddof=0))


def test_interactions_and_names_with_blanks(metadata):
    design = Design.of("~ age * fed + `batch 1`", metadata)
    assert design.names == ("age", "fed[T.True]", "batch 1[T.b]", "age:fed[T.True]")


def test_new_samples_are_coded_as_those_of_the_fit(metadata):
    design = Design.of("~ site + age", metadata)
    some = metadata.iloc[[1, 3]]
    np.testing.assert_array_equal(design.matrix(some), design.matrix(metadata)[[1, 3]])


def test_numbers_in_c_are_groups_in_their_order_however_they_were_read(metadata):
    metadata["run"] = [2.0, 10.0, 3.0, 2.0, 10.0, 2.0]
    design = Design.of("~ C(run) + age", metadata)
    assert design.names == ("run[T.3]", "run[T.10]", "age")
    assert len(Design.of("~ run + age", metadata).names) == 2
    X = design.matrix(metadata)
    np.testing.assert_allclose(X[:, 1] > 0, metadata["run"] == 10)
    np.testing.assert_array_equal(design.matrix(metadata.astype({"run": int})), X)
    as_text = metadata.assign(run=metadata["run"].map("{:.0f}".format))
    np.testing.assert_array_equal(design.matrix(as_text), X)
    again = Design.restore(design.settings())
    np.testing.assert_array_equal(again.matrix(metadata), X)
    with pytest.raises(InputError, match=r"'run' has '7.0' in sample 's1', .*it knows '2', '3'"):
        design.matrix(metadata.assign(run=[2.0, 7.0, 3.0, 2.0, 10.0, 2.0]))


def test_numbers_that_were_read_as_text_are_numbers(metadata):
    design = Design.of("~ age", metadata)
    expected = design.matrix(metadata)
    for kind in (object, str, "category"):
        new = metadata.assign(age=metadata["age"].map("{:g}".format).astype(kind))
        np.testing.assert_allclose(design.matrix(new), expected)
        np.testing.assert_allclose(design.matrix(new.iloc[:2]), expected[:2])
        np.testing.assert_allclose(design.matrix(new.iloc[:1]), expected[:1])
    with pytest.raises(InputError, match="'age' has 'inf' in sample 's0'"):
        design.matrix(metadata.assign(age=["inf", *"12345"]))


def test_a_name_in_backticks_is_a_name_whatever_it_looks_like(metadata):
    metadata["C(age)"] = [0.5, 1.0, 0.2, 0.1, 0.9, 0.7]
    assert Design.of("~ `C(age)`", metadata).names == ("C(age)",)
    metadata["run 1"] = [1.0, 2.0, 1.0, 2.0, 1.0, 1.0]
    assert Design.of("~ C(`run 1`)", metadata).names == ("run 1[T.2]",)
    assert variables("~ C(`run 1`) * `C(age)` + age") == ["run 1", "C(age)", "age"]


def test_a_design_is_restored_from_plain_json(metadata):
    design = Design.of("~ site + age", metadata)
    again = Design.restore(design.settings())
    np.testing.assert_array_equal(again.matrix(metadata), design.matrix(metadata))


@pytest.mark.parametrize(
    ("formula", "sentence"),
    [
        ("~ __import__('os').getcwd()", "cannot be read"),
        ("~ np.log(age)", "expected names of columns; got 'np.log\\(age\\)'"),
        ("~ C(age, site)", "expected names of columns; got 'C\\(age, site\\)'"),
        ("~ C(open('x', 'w'))", "expected names of columns"),
        ("~ C(weight)", "there is no column 'weight'"),
        ("~ {age + 1}", "expected names of columns"),
        ("age ~ site", "expected one side"),
        ("~ 0 + site", "keep the constant"),
        ("~ 1", "names no column"),
        ("~ (", "cannot be read"),
        ("~ weight", "there is no column 'weight'"),
        (3, "expected text"),
    ],
)
def test_a_formula_that_is_no_sum_of_columns_is_refused(metadata, formula, sentence):
    with pytest.raises(InputError, match=sentence):
        Design.of(formula, metadata)


def test_a_formula_from_a_file_is_not_evaluated_either(metadata):
    settings = Design.of("~ age", metadata).settings() | {"formula": "~ open('x', 'w')"}
    with pytest.raises(InputError, match="expected names of columns"):
        Design.restore(settings)


def test_what_is_missing_or_unknown_is_named(metadata):
    design = Design.of("~ site + age", metadata)
    new = metadata.assign(site=["gut"] * 5 + ["ear"])
    with pytest.raises(InputError, match=r"'site' has 'ear' in sample 's5'.*it knows"):
        design.matrix(new)
    with pytest.raises(InputError, match="'age' has no value in sample 's2'"):
        design.matrix(metadata.assign(age=[1, 2, np.nan, 4, 5, 6]))
    with pytest.raises(InputError, match="there is no metadata"):
        design.matrix(None)


def test_columns_that_say_nothing_or_nothing_new_are_refused(metadata):
    with pytest.raises(InputError, match="'one' is the same in every sample"):
        Design.of("~ age + one", metadata.assign(one=1.0))
    with pytest.raises(InputError, match="follow from one another"):
        Design.of("~ age + twice", metadata.assign(twice=2 * metadata["age"]))
