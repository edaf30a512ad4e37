"""Ψ against a dense twin, against scikit-bio, and against its own laws."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csc_array, csr_matrix
from skbio import TreeNode
from skbio.stats.composition import ilr, tree_basis

from countvae.basis import (
    Balances,
    MatrixBasis,
    balanced,
    from_matrix,
    from_tree,
    make_basis,
    restore,
    sequential,
)
from countvae.errors import CountvaeWarning, InputError


def ids_of(d):
    return [f"f{j}" for j in range(d)]


def random_newick(d, rng, widest=2):
    """A random tree over f0 … f{d-1} in random order, with up to `widest` children a node."""
    parts = [f"f{j}" for j in rng.permutation(d)]
    while len(parts) > 1:
        m = min(int(rng.integers(2, widest + 1)), len(parts))
        first = int(rng.integers(0, len(parts) - m + 1))
        parts[first : first + m] = ["(" + ",".join(parts[first : first + m]) + ")"]
    return parts[0] + ";"


def caterpillar(d):
    return "(" * (d - 1) + "f0" + "".join(f",f{j})" for j in range(1, d)) + ";"


def dense_twin(basis):
    """Ψ by its definition, one balance at a time."""
    Psi = np.zeros((basis.d, basis.d - 1))
    for c, (a, m, b) in enumerate(zip(basis.start, basis.middle, basis.stop, strict=True)):
        r, s = m - a, b - m
        Psi[basis.order[a:m], c] = np.sqrt(r * s / (r + s)) / r
        Psi[basis.order[m:b], c] = -np.sqrt(r * s / (r + s)) / s
    return Psi


def naive_tree_psi(newick, ids):
    """Ψ of a binary Newick tree from the tips under each child, the tree walked in preorder."""
    columns = []
    for node in TreeNode.read([newick], format="newick").preorder():
        if node.children:
            left, right = (
                [ids.index(tip.name) for tip in child.tips(include_self=True)]
                for child in node.children
            )
            r, s = len(left), len(right)
            column = np.zeros(len(ids))
            column[left] = np.sqrt(r * s / (r + s)) / r
            column[right] = -np.sqrt(r * s / (r + s)) / s
            columns.append(column)
    return np.array(columns).T


def build(kind, d, seed, widest):
    if kind in ("balanced", "sequential"):
        return make_basis(kind, ids_of(d))
    tree = from_tree(random_newick(d, np.random.default_rng(seed), widest), ids_of(d))
    return tree if kind == "tree" else from_matrix(tree.to_sparse(), ids_of(d))


sizes = st.integers(2, 40), st.integers(0, 2**32 - 1), st.integers(2, 6)
trees = st.tuples(st.just("tree"), *sizes)
bases = st.tuples(st.sampled_from(["balanced", "sequential", "tree", "matrix"]), *sizes)


@settings(max_examples=60, deadline=None)
@given(bases)
def test_columns_are_orthonormal_and_sum_to_zero(parameters):
    basis = build(*parameters)
    Psi = basis.to_sparse().toarray()
    np.testing.assert_allclose(Psi.T @ Psi, np.eye(basis.d - 1), atol=1e-12)
    np.testing.assert_allclose(Psi.sum(axis=0), 0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(bases)
def test_apply_and_adjoint_equal_the_matrix(parameters):
    basis = build(*parameters)
    rng = np.random.default_rng(0)
    eta, y = rng.standard_normal((2, 3, basis.d - 1)), rng.standard_normal((2, 3, basis.d))
    Psi = basis.to_sparse().toarray()
    np.testing.assert_allclose(basis.apply(eta), eta @ Psi.T, atol=1e-12)
    np.testing.assert_allclose(basis.adjoint(y), y @ Psi, atol=1e-12)
    np.testing.assert_allclose((basis.apply(eta) * y).sum(), (eta * basis.adjoint(y)).sum())


@settings(max_examples=40, deadline=None)
@given(trees)
def test_fast_basis_equals_its_dense_twin(parameters):
    basis = build(*parameters)
    np.testing.assert_allclose(basis.to_sparse().toarray(), dense_twin(basis), atol=1e-14)
    assert len(set(basis.names)) == basis.d - 1


@pytest.mark.parametrize("seed", range(5))
def test_tree_basis_equals_tips_counted_under_each_child(seed):
    newick = random_newick(17, np.random.default_rng(seed))
    basis = from_tree(newick, ids_of(17))
    np.testing.assert_allclose(
        basis.to_sparse().toarray(), naive_tree_psi(newick, ids_of(17)), atol=1e-14
    )


@pytest.mark.parametrize("seed", range(5))
def test_tree_basis_equals_scikit_bio_up_to_sign_and_column_order(seed):
    newick = random_newick(12, np.random.default_rng(seed))
    tree = TreeNode.read([newick], format="newick")
    theirs, _ = tree_basis(tree)  # one row a balance, columns in the order of the tips
    tips = [tip.name for tip in tree.tips()]
    ours = from_tree(tree, tips).to_sparse().toarray()
    overlap = np.abs(theirs.toarray() @ ours)
    np.testing.assert_allclose(np.sort(overlap, axis=0)[-1], 1, atol=1e-12)
    np.testing.assert_allclose(np.sort(overlap, axis=1)[:, :-1], 0, atol=1e-12)


@pytest.mark.skipif(not hasattr(np.ndarray, "device"), reason="scikit-bio's ilr needs numpy 2")
def test_sequential_basis_gives_scikit_bios_default_ilr():
    x = np.random.default_rng(0).dirichlet(np.ones(9), size=4)
    np.testing.assert_allclose(sequential(ids_of(9)).adjoint(np.log(x)), ilr(x), atol=1e-12)


def test_rotation_between_bases_keeps_the_clr_covariance():
    rng = np.random.default_rng(1)
    W = rng.standard_normal((29, 3))
    one, other = balanced(ids_of(30)), from_tree(random_newick(30, rng, 4), ids_of(30))
    V = one.apply(W.T)
    V_again = other.apply(other.adjoint(V))
    np.testing.assert_allclose(V_again.T @ V_again, V.T @ V, atol=1e-12)


def test_float32_is_accumulated_in_float64():
    d = 20_000
    y = np.random.default_rng(0).standard_normal(d).astype(np.float32) + np.float32(1000)
    basis = sequential(ids_of(d))
    prefix = np.cumsum(y.astype(float))[:-1] / np.arange(1, d)
    j = np.arange(1, d)
    expected = np.sqrt(j / (j + 1)) * (prefix - y[1:].astype(float))
    np.testing.assert_allclose(basis.adjoint(y), expected, atol=1e-9)
    np.testing.assert_allclose(
        basis.apply(basis.adjoint(y)), y.astype(float) - y.mean(dtype=float), atol=1e-9
    )


def test_empty_batch_gives_an_empty_batch():
    basis = balanced(ids_of(5))
    assert basis.apply(np.empty((0, 4))).shape == (0, 5)
    assert basis.adjoint(np.empty((0, 5))).shape == (0, 4)


@pytest.mark.parametrize("as_nodes", [False, True])
def test_caterpillar_of_50000_tips_needs_no_recursion(as_nodes):
    d = 50_000
    tree = caterpillar(d)
    if as_nodes:
        tree = TreeNode.read(io.StringIO(tree), format="newick")
    basis = from_tree(tree, ids_of(d))
    y = np.random.default_rng(0).standard_normal((2, d))
    np.testing.assert_allclose(
        basis.apply(basis.adjoint(y)), y - y.mean(axis=1, keepdims=True), atol=1e-9
    )
    with pytest.raises(InputError, match=r"1,250,024,999 non-zeros"):
        basis.to_sparse()


def test_balanced_basis_has_d_log_d_non_zeros():
    assert balanced(ids_of(1024)).to_sparse().nnz == 1024 * 10


def test_star_tree_is_resolved_into_the_balanced_basis():
    star = from_tree("(" + ",".join(ids_of(13)) + ");", ids_of(13))
    np.testing.assert_array_equal(
        star.to_sparse().toarray(), balanced(ids_of(13)).to_sparse().toarray()
    )


def test_sequential_basis_is_a_caterpillar():
    ours, tree = sequential(ids_of(9)), from_tree(caterpillar(9), ids_of(9))
    np.testing.assert_allclose(
        ours.to_sparse().toarray()[:, ::-1], tree.to_sparse().toarray(), atol=1e-15
    )
    assert ours.names[::-1].tolist() == tree.names.tolist()


def test_tips_outside_the_table_are_left_out_with_a_warning_and_lone_children_passed_over():
    newick = "(((a,x)only_a,(b)just_b)ab,((y,z)none,(c,d)cd)right)root;"
    with pytest.warns(CountvaeWarning, match="3 of the tree's 7 tips are not among the 4 features"):
        basis = from_tree(newick, ["d", "c", "b", "a"])
    assert basis.names.tolist() == ["root", "ab", "cd"]
    np.testing.assert_allclose(basis.adjoint(np.array([0.0, 0, 0, 1])), [0.5, np.sqrt(0.5), 0])


def test_the_users_tree_is_left_as_it_was():
    tree = TreeNode.read(["((a,b,c)u,(d,x)v);"], format="newick")
    before = str(tree)
    with pytest.warns(CountvaeWarning):
        from_tree(tree, list("abcd"))
    assert str(tree) == before


def test_node_names_are_used_only_where_they_tell_balances_apart():
    basis = from_tree("(((a,b)0.98,(c,d)same)clade,((e,f)same,g));", list("abcdefg"))
    assert basis.names.tolist() == ["a|e", "clade", "a|b", "c|d", "e|g", "e|f"]


def test_names_stay_unique_when_ids_hold_the_separator():
    basis = from_tree("((a|b,c),(a,b|c));", ["a|b", "c", "a", "b|c"])
    assert len(set(basis.names)) == 3


@pytest.mark.parametrize(
    "newick",
    ["(OTU_1,(OTU_2,OTU_3));", "('OTU_1',('OTU_2',OTU_3));", "(OTU_1:1,(OTU_2,'OTU_3')x);"],
)
def test_underscores_are_found_quoted_or_not(newick):
    assert from_tree(newick, ["OTU_1", "OTU_2", "OTU_3"]).d == 3


def test_quotes_and_spaces_are_read_as_scikit_bio_does():
    assert from_tree("('it''s',(two_words,'k__A; p__B'));", ["it's", "two words", "k__A; p__B"]).d


@pytest.mark.parametrize(
    ("tree", "features", "sentence"),
    [
        ("(a,b);", "abc", r"1 of 3 features are not among the tree's 2 tips: 'c'\."),
        ("(a,b);", "abcdefg", r"5 of 7 features .*: 'c', 'd', 'e' and 2 more\."),
        ("(a,(b,a));", "ab", "the tree's tips must be unique; got more than once 'a'"),
        ("(a,(b,c);", "abc", "Newick text is not a Newick tree"),
        ("no/such.nwk", "abc", "'no/such.nwk' is neither 'balanced', 'sequential' nor"),
        ("balanced", "a", "at least 2 features; got 1"),
        ("balanced", "aba", "feature ids must be unique; got more than once 'a'"),
    ],
)
def test_bad_trees_and_features_get_one_sentence(tree, features, sentence):
    with pytest.raises(InputError, match=sentence) as caught:
        make_basis(tree, list(features))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"not a tree"])
def test_foreign_files_get_one_sentence(tmp_path, content):
    path = tmp_path / "tree.nwk"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is not a Newick tree"):
        make_basis(path, list("abc"))


def test_matrix_in_any_form_is_the_same_basis():
    pd = pytest.importorskip("pandas")
    Psi = balanced(ids_of(6)).to_sparse()
    frame = pd.DataFrame(Psi.toarray(), index=ids_of(6), columns=list("pqrst"))
    forms = [Psi, csr_matrix(Psi), Psi.toarray(), Psi.toarray().astype(np.float32), frame[::-1]]
    for form in forms:
        basis = make_basis(form, ids_of(6))
        np.testing.assert_allclose(basis.to_sparse().toarray(), Psi.toarray(), atol=1e-7)
    assert basis.names.tolist() == list("pqrst")


def spoil(change):
    Psi = balanced(ids_of(6)).to_sparse().toarray()
    change(Psi)
    return Psi


@pytest.mark.parametrize("form", [np.asarray, csc_array])
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda P: P.__setitem__((slice(None), 2), P[:, 2] * 1.1), "column 'y2' has length 1.1 "),
        (lambda P: P.__setitem__((slice(None), 3), P[:, 1]), "product 1 with column 'y[13]'"),
        (lambda P: P.__setitem__((0, 4), 0.5), "column 'y4' sums to 0.5"),
        (lambda P: P.__setitem__((0, 0), np.nan), "finite"),
    ],
)
def test_matrix_that_is_no_basis_is_refused_by_its_worst_column(form, change, sentence):
    with pytest.raises(InputError, match=sentence):
        from_matrix(form(spoil(change)), ids_of(6))


def test_matrix_check_reaches_columns_beyond_the_first_block():
    Psi = balanced(ids_of(400)).to_sparse() * np.where(np.arange(399) == 390, 2, 1)
    with pytest.raises(InputError, match="'y390' has length 2 "):
        from_matrix(Psi, ids_of(400))


def test_matrix_of_the_wrong_shape_or_kind_is_refused():
    with pytest.raises(InputError, match=r"shape \(4, 3\) for 4 features; got \(4, 4\)"):
        from_matrix(np.eye(4), ids_of(4))
    with pytest.raises(InputError, match="matrix of numbers"):
        from_matrix(np.full((4, 3), "x"), ids_of(4))
    with pytest.raises(InputError, match="matrix of numbers"):
        make_basis(object(), ids_of(4))


def test_existing_basis_is_taken_as_it_is_if_it_fits():
    basis = sequential(ids_of(4))
    assert make_basis(basis, ids_of(4)) is basis
    with pytest.raises(InputError, match="over 5 features; got one over 4"):
        make_basis(basis, ids_of(5))


@pytest.mark.parametrize("kind", [Balances, MatrixBasis])
def test_state_round_trip_keeps_the_basis_and_its_names(kind):
    basis = from_tree("((a,b)low,(c,d));", list("abcd"))
    if kind is MatrixBasis:
        basis = from_matrix(basis.to_sparse(), list("abcd"))
    again = restore(basis.state())
    assert isinstance(again, kind)
    assert again.names.tolist() == basis.names.tolist()
    np.testing.assert_array_equal(again.to_sparse().toarray(), basis.to_sparse().toarray())


@pytest.mark.parametrize("name", ["ecam", "globalpatterns"])
def test_phylogenies_of_real_tables_give_orthonormal_bases(name):
    data = Path(os.environ.get("COUNTVAE_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = data / name / "tree.nwk"
    if not path.exists():
        pytest.skip("shared data not present")
    tree = TreeNode.read(str(path), format="newick")
    ids = [tip.name for tip in tree.tips()]
    basis = from_tree(path, ids)
    eta = np.random.default_rng(0).standard_normal((2, basis.d - 1))
    y = basis.apply(eta)
    np.testing.assert_allclose(basis.adjoint(y), eta, atol=1e-10)
    np.testing.assert_allclose(y @ y.T, eta @ eta.T)
