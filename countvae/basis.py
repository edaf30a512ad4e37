r"""Orthonormal bases of log-ratios: Ψ is d × (d−1) with ΨᵀΨ = I and 1ᵀΨ = 0.

A binary tree over the features gives one *balance* to each of its d−1 inner nodes: the log-ratio of
the geometric means of its left clade (r features) and of its right clade (s features),

.. math::

    \Psi_{jc} = \sqrt{rs/(r+s)} \cdot
    (1/r \text{ on the left}, \; -1/s \text{ on the right}, \; 0 \text{ elsewhere}).

With the features in the order of the leaves every clade is an interval, so a balance is three
integers (start, middle, stop); Ψη is then one cumulative sum over a row, and so is Ψᵀy. That costs
O(d) whatever the shape of the tree, while Ψ itself has O(d log d) non-zeros when the tree is
balanced and O(d²) when it is a caterpillar.
"""

import warnings
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer, Shaped
from scipy.sparse import csc_array, csr_array, eye_array, issparse
from skbio import TreeNode

from countvae.checks import check_unique, examples
from countvae.errors import BasisError, CountvaeWarning, TooLarge, TooSmall

ORTHONORMAL_TOLERANCE = 1e-5  # leaves room for a matrix written in float32
CHECK_BLOCK = 256  # columns of ΨᵀΨ formed at a time


@dataclass(frozen=True, eq=False)
class Balances:
    """The basis of a binary tree: d−1 triples of positions in the order of its leaves.

    Attributes
    ----------
    order : ndarray of int, shape (d,)
        The feature (column of the table) at each position.
    start, middle, stop : ndarray of int, shape (d-1,)
        Balance c contrasts positions ``start[c]:middle[c]`` (+) with ``middle[c]:stop[c]`` (−).
    names : ndarray of str, shape (d-1,)
        One name for each balance, no two alike.

    References
    ----------
    Egozcue et al. (2003), *Isometric logratio transformations for compositional data analysis*.

    Examples
    --------
    >>> psi = sequential(["a", "b", "c"])
    >>> psi.names.tolist()
    ['a|b', 'a|c']
    >>> psi.to_sparse().toarray().round(3)
    array([[ 0.707,  0.408],
           [-0.707,  0.408],
           [ 0.   , -0.816]])
    >>> psi.apply(np.array([1.0, 0.0])).round(3)
    array([ 0.707, -0.707,  0.   ])
    """

    order: Integer[np.ndarray, " d"]
    start: Integer[np.ndarray, " m"]
    middle: Integer[np.ndarray, " m"]
    stop: Integer[np.ndarray, " m"]
    names: Shaped[np.ndarray, " m"]

    @property
    def d(self) -> int:
        """Number of features."""
        return len(self.order)

    def apply(self, eta: Float[np.ndarray, "*batch m"]) -> Float[np.ndarray, "*batch d"]:
        """Ψη for each row: from log-ratios to centred logits, in float64."""
        rows = _rows(eta, self.d - 1)
        y = np.empty((len(rows), self.d))
        y[:, self.order] = np.cumsum(self._steps @ rows.T, axis=0).T
        return y.reshape(*eta.shape[:-1], self.d)

    def adjoint(self, y: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch m"]:
        """Ψᵀy for each row: from logits (a constant is ignored) to log-ratios, in float64."""
        rows = _rows(y, self.d)
        # Centred first: the sums stay small, and differences of them keep their digits.
        rows = rows - rows.mean(axis=1, keepdims=True)
        before = np.zeros((len(rows), self.d + 1))
        np.cumsum(rows[:, self.order], axis=1, out=before[:, 1:])
        plus, minus = self._heights
        middle = before[:, self.middle]
        eta = plus * (middle - before[:, self.start]) - minus * (before[:, self.stop] - middle)
        return eta.reshape(*y.shape[:-1], self.d - 1)

    def to_sparse(self, max_bytes: int = 2**31) -> csc_array:
        """Ψ itself, d × (d−1).

        Parameters
        ----------
        max_bytes : int
            The most memory its non-zeros may take.

        Raises
        ------
        InputError
            If they would take more: a caterpillar has d²/2 of them.
        """
        width = self.stop - self.start
        pointers = np.concatenate([[0], np.cumsum(width)])
        n_nonzeros = int(pointers[-1])
        n_bytes = n_nonzeros * (np.dtype(float).itemsize + np.dtype(np.int64).itemsize)
        if n_bytes > max_bytes:
            raise TooLarge(
                f"basis: its matrix over {self.d:,} features has {n_nonzeros:,} non-zeros "
                f"({n_bytes / 2**30:.1f} GiB), more than the {max_bytes / 2**30:.1f} GiB allowed; "
                "a balanced basis needs far less."
            )
        position = np.arange(n_nonzeros) - np.repeat(pointers[:-1] - self.start, width)
        plus, minus = self._heights
        value = np.where(
            position < np.repeat(self.middle, width),
            np.repeat(plus, width),
            np.repeat(-minus, width),
        )
        psi = csc_array((value, self.order[position], pointers), shape=(self.d, self.d - 1))
        psi.sort_indices()
        return psi

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays by name, enough to build this basis again with `restore`."""
        return {
            "order": self.order,
            "start": self.start,
            "middle": self.middle,
            "stop": self.stop,
            "names": self.names,
        }

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> "Balances":
        """Build the basis again from its `state`."""
        return cls(**state)

    @property
    def _heights(self) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, " m"]]:
        """What a balance holds on its left, and minus what it holds on its right."""
        r, s = self.middle - self.start, self.stop - self.middle
        return np.sqrt(s / (r * (r + s))), np.sqrt(r / (s * (r + s)))

    @cached_property
    def _steps(self) -> csr_array:
        """Differences of Ψ down its rows in leaf order: three non-zeros a balance."""
        plus, minus = self._heights
        row = np.concatenate([self.start, self.middle, self.stop])
        column = np.tile(np.arange(self.d - 1), 3)
        value = np.concatenate([plus, -(plus + minus), minus])
        steps = csr_array((value, (row, column)), shape=(self.d + 1, self.d - 1))
        return steps[: self.d]


@dataclass(frozen=True, eq=False)
class MatrixBasis:
    """A basis given as its matrix.

    Attributes
    ----------
    matrix : csc_array, shape (d, d-1)
        Ψ.
    names : ndarray of str, shape (d-1,)
        One name for each column, no two alike.
    """

    matrix: csc_array
    names: Shaped[np.ndarray, " m"]

    @property
    def d(self) -> int:
        """Number of features."""
        return self.matrix.shape[0]

    def apply(self, eta: Float[np.ndarray, "*batch m"]) -> Float[np.ndarray, "*batch d"]:
        """Ψη for each row: from log-ratios to centred logits, in float64."""
        y = (self.matrix @ _rows(eta, self.d - 1).T).T
        return y.reshape(*eta.shape[:-1], self.d)

    def adjoint(self, y: Float[np.ndarray, "*batch d"]) -> Float[np.ndarray, "*batch m"]:
        """Ψᵀy for each row: from logits to log-ratios, in float64."""
        eta = (self.matrix.T @ _rows(y, self.d).T).T
        return eta.reshape(*y.shape[:-1], self.d - 1)

    def to_sparse(self) -> csc_array:
        """Ψ itself, d × (d−1)."""
        return self.matrix

    def state(self) -> dict[str, np.ndarray]:
        """Plain arrays by name, enough to build this basis again with `restore`."""
        return {
            "data": self.matrix.data,
            "indices": self.matrix.indices,
            "indptr": self.matrix.indptr,
            "names": self.names,
        }

    @classmethod
    def from_state(cls, state: dict[str, np.ndarray]) -> "MatrixBasis":
        """Build the basis again from its `state`."""
        m = len(state["names"])
        parts = (state["data"], state["indices"], state["indptr"])
        return cls(csc_array(parts, shape=(m + 1, m)), state["names"])


Basis = Balances | MatrixBasis


def restore(state: dict[str, np.ndarray]) -> Basis:
    """Build a basis of either kind again from its ``state()``.

    Examples
    --------
    >>> restore(balanced(["a", "b", "c"]).state()).names.tolist()
    ['a|c', 'a|b']
    """
    return (Balances if "order" in state else MatrixBasis).from_state(state)


def balanced(feature_ids: Iterable[str]) -> Balances:
    """Halve the features, in the order given, again and again: the default basis.

    Parameters
    ----------
    feature_ids : iterable of str, length d

    Returns
    -------
    Balances
        Outermost first; each is named ``first of the left|first of the right``.

    Raises
    ------
    InputError
        If there are fewer than two features or an id occurs twice.

    Examples
    --------
    >>> balanced(["a", "b", "c", "d"]).names.tolist()
    ['a|c', 'a|b', 'c|d']
    """
    ids = _ids(feature_ids)
    triples = np.array(list(_halvings(range(len(ids) + 1))))
    return _balances(np.arange(len(ids)), triples, ids)


def sequential(feature_ids: Iterable[str]) -> Balances:
    """Contrast the first j features with the next one, j = 1 … d−1: Helmert's basis.

    Parameters
    ----------
    feature_ids : iterable of str, length d

    Returns
    -------
    Balances
        Named ``first feature|next feature``.

    Raises
    ------
    InputError
        If there are fewer than two features or an id occurs twice.

    Examples
    --------
    >>> sequential(["a", "b", "c", "d"]).names.tolist()
    ['a|b', 'a|c', 'a|d']
    """
    ids = _ids(feature_ids)
    j = np.arange(1, len(ids))
    return _balances(np.arange(len(ids)), np.column_stack([np.zeros_like(j), j, j + 1]), ids)


def from_tree(tree: TreeNode | str | Path, feature_ids: Iterable[str]) -> Balances:
    """Take the balances of a phylogeny, root first.

    Tips are matched to features by id, and tips without a feature are left out, with a warning.
    Nodes with one child left are passed over; a node with more than two has its children halved
    again and again. A balance takes its node's name if that is the only node so called and the
    name is no number (those are support values); otherwise it is called
    ``first tip of the left|first tip of the right``.

    Parameters
    ----------
    tree : TreeNode, str or Path
        A tree, a Newick file, or Newick text (ends with ``;``). An unquoted ``_`` in Newick
        stands for a space; it is kept as ``_`` where more features are found that way.
    feature_ids : iterable of str, length d

    Returns
    -------
    Balances

    Raises
    ------
    InputError
        If the file cannot be read, a tip occurs twice, or a feature is not among the tips.

    Examples
    --------
    >>> from_tree("((b,c)low,a)top;", ["a", "b", "c"]).names.tolist()
    ['top', 'low']
    """
    ids = _ids(feature_ids)
    root = _read_newick(tree, set(ids)) if isinstance(tree, str | Path) else tree
    nodes = list(root.preorder(include_self=True))
    column = _match_tips([node.name for node in nodes if not node.children], ids)

    # A node's descendants follow it in preorder, so its clade is the interval before[i]:before[j],
    # j one past its last descendant.
    index = {id(node): i for i, node in enumerate(nodes)}
    is_kept = np.array([not node.children and node.name in column for node in nodes])
    before = np.concatenate([[0], np.cumsum(is_kept)]).tolist()
    past = list(range(1, len(nodes) + 1))
    for i in range(len(nodes) - 1, 0, -1):
        parent = index[id(nodes[i].parent)]
        past[parent] = max(past[parent], past[i])

    triples: list[tuple[int, int, int]] = []
    node_names: dict[int, str] = {}
    for i, node in enumerate(nodes):
        # An empty clade starts where the next one does, so the set drops it.
        edges = sorted({before[index[id(child)]] for child in node.children} | {before[past[i]]})
        if len(edges) > 2:
            node_names[len(triples)] = node.name or ""
            triples.extend(_halvings(edges))
    order = np.array([column[node.name] for node, kept in zip(nodes, is_kept, strict=True) if kept])
    return _balances(order, np.array(triples), ids, node_names)


def from_matrix(matrix: Any, feature_ids: Iterable[str]) -> MatrixBasis:
    """Take the user's own matrix, checked.

    Parameters
    ----------
    matrix : array-like, sparse matrix or DataFrame, shape (d, d-1)
        Orthonormal columns summing to zero. A DataFrame's rows are aligned to the features by id
        and its column labels become the names; otherwise these are ``y0, y1, …``.
    feature_ids : iterable of str, length d

    Returns
    -------
    MatrixBasis

    Raises
    ------
    InputError
        If the shape is wrong, a value is not finite, or the columns are not orthonormal or do not
        sum to zero; the sentence names the worst column.

    Examples
    --------
    >>> from_matrix(np.array([[1.0], [-1.0]]) / np.sqrt(2), ["a", "b"]).names.tolist()
    ['y0']
    """
    ids = _ids(feature_ids)
    names = None
    if hasattr(matrix, "columns"):
        names = [str(name) for name in matrix.columns]
        row = {str(name): i for i, name in enumerate(matrix.index)}
        _require_all(ids, row, f"its {len(row):,} row labels")
        matrix = matrix.iloc[[row[name] for name in ids]]
    try:
        psi = csc_array(matrix, dtype=float) if issparse(matrix) else np.asarray(matrix, float)
    except (TypeError, ValueError):
        raise BasisError("basis: expected a matrix of numbers.") from None
    d = len(ids)
    if psi.shape != (d, d - 1):
        raise BasisError(
            f"basis: expected a matrix of shape ({d}, {d - 1}) for {d} features; got {psi.shape}."
        )
    if names is None:
        names = [f"y{c}" for c in range(d - 1)]
    check_unique(names, "basis: column names")
    _check_orthonormal(psi, names)
    return MatrixBasis(csc_array(psi), np.array(names))


def make_basis(basis: Any, feature_ids: Iterable[str]) -> Basis:
    """Turn what a user may give as a basis into one.

    Parameters
    ----------
    basis : "balanced", "sequential", TreeNode, Newick file or text, matrix, or Basis
    feature_ids : iterable of str, length d

    Returns
    -------
    Balances or MatrixBasis

    Raises
    ------
    InputError
        If it is none of these or does not fit the features.

    Examples
    --------
    >>> make_basis("balanced", ["a", "b", "c"]).d
    3
    >>> make_basis("(a,(b,c));", ["a", "b", "c"]).names.tolist()
    ['a|b', 'b|c']
    """
    ids = _ids(feature_ids)
    if isinstance(basis, Basis):
        if basis.d != len(ids):
            raise BasisError(
                f"basis: expected a basis over {len(ids)} features; got one over {basis.d}."
            )
        return basis
    if isinstance(basis, str) and basis in NAMED:
        return NAMED[basis](ids)
    if isinstance(basis, str | Path | TreeNode):
        return from_tree(basis, ids)
    return from_matrix(basis, ids)


NAMED = {"balanced": balanced, "sequential": sequential}


def _rows(a: Float[np.ndarray, "*batch m"], width: int) -> Float[np.ndarray, "rows m"]:
    return np.asarray(a, float).reshape(prod(a.shape[:-1]), width)


def _ids(feature_ids: Iterable[str]) -> list[str]:
    ids = [str(name) for name in feature_ids]
    if len(ids) < 2:
        raise TooSmall(f"feature_ids: a basis needs at least 2 features; got {len(ids)}.")
    check_unique(ids, "feature_ids: feature ids")
    return ids


def _require_all(ids: Sequence[str], found: Container[str], where: str) -> None:
    missing = [name for name in ids if name not in found]
    if missing:
        raise BasisError(
            f"basis: {len(missing):,} of {len(ids):,} features are not among {where}: "
            f"{examples(missing)}."
        )


def _halvings(edges: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Halve the blocks between the edges until each stands alone; outermost cut first."""
    spans = [(0, len(edges) - 1)]
    while spans:
        low, high = spans.pop()
        if high - low > 1:
            cut = (low + high + 1) // 2
            yield edges[low], edges[cut], edges[high]
            spans += [(cut, high), (low, cut)]


def _balances(
    order: Integer[np.ndarray, " d"],
    triples: Integer[np.ndarray, "m 3"],
    ids: Sequence[str],
    node_names: dict[int, str] | None = None,
) -> Balances:
    """Name the balances: by their nodes where those tell them apart, else by their first tips."""
    start, middle, stop = np.ascontiguousarray(triples.T)
    node_names = node_names or {}
    count = Counter(node_names.values())
    good = {c: s for c, s in node_names.items() if s and count[s] == 1 and not _is_number(s)}
    taken = set(good.values())
    names = []
    for c, (left, right) in enumerate(zip(order[start], order[middle], strict=True)):
        name = good.get(c)
        if name is None:
            name = f"{ids[left]}|{ids[right]}"
            while name in taken:  # an id may hold a "|" itself
                name += "'"
            taken.add(name)
        names.append(name)
    return Balances(order, start, middle, stop, np.array(names))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _read_newick(source: str | Path, ids: set[str]) -> TreeNode:
    text = str(source)
    name = "Newick text"
    if not text.rstrip().endswith(";"):
        name = f"'{source}'"
        try:
            if not Path(source).is_file():
                raise FileNotFoundError
            text = Path(source).read_text(encoding="utf-8")
        except OSError:
            raise BasisError(
                f"basis: {name} is neither 'balanced', 'sequential' nor a readable Newick file."
            ) from None
        except UnicodeDecodeError:
            raise BasisError(f"basis: {name} is not a Newick tree.") from None
    try:
        tree = _parse_newick(text, convert_underscores=True)
        n_found = _n_found(tree, ids)
        if n_found < len(ids) and "_" in text:
            verbatim = _parse_newick(text, convert_underscores=False)
            if _n_found(verbatim, ids) > n_found:
                return verbatim
    except Exception as error:  # the parser of a broken tree fails in ways of its own
        raise BasisError(f"basis: {name} is not a Newick tree.") from error
    return tree


def _parse_newick(text: str, *, convert_underscores: bool) -> TreeNode:
    return TreeNode.read(
        [text], format="newick", verify=False, convert_underscores=convert_underscores
    )


def _n_found(tree: TreeNode, ids: set[str]) -> int:
    return sum(tip.name in ids for tip in tree.tips(include_self=True))


def _match_tips(tips: Sequence[str | None], ids: Sequence[str]) -> dict[str, int]:
    """Give each feature's column, having seen that the tips have every feature, each tip once."""
    column = {name: j for j, name in enumerate(ids)}
    named = [name for name in tips if name is not None]
    check_unique(named, "basis: the tree's tips")
    _require_all(ids, set(named), f"the tree's {len(tips):,} tips")
    n_other = len(tips) - len(ids)
    if n_other:
        warnings.warn(
            f"basis: {n_other:,} of the tree's {len(tips):,} tips are not among "
            f"the {len(ids):,} features and were left out.",
            CountvaeWarning,
            stacklevel=3,
        )
    return column


def _check_orthonormal(psi: np.ndarray | csc_array, names: Sequence[str]) -> None:
    """Check the columns block by block: ΨᵀΨ is never held whole."""
    m = psi.shape[1]
    finite = np.isfinite(psi.data if issparse(psi) else psi)
    if not finite.all():
        raise BasisError("basis: expected finite values; the matrix has NaN or infinite ones.")
    total = np.abs(psi.sum(axis=0))
    worst = int(total.argmax())
    if total[worst] > ORTHONORMAL_TOLERANCE:
        raise BasisError(
            f"basis: expected columns summing to 0; "
            f"column '{names[worst]}' sums to {psi[:, [worst]].sum():.3g}."
        )
    identity = eye_array(m, format="csc")
    error = np.empty(m)
    for first in range(0, m, CHECK_BLOCK):
        block = slice(first, first + CHECK_BLOCK)
        deviation = csc_array(psi.T @ psi[:, block]) - identity[:, block]
        error[block] = abs(deviation).max(axis=0).toarray()
    worst = int(error.argmax())
    if error[worst] > ORTHONORMAL_TOLERANCE:
        column = psi[:, [worst]]
        norm = float(np.sqrt((column**2).sum()))
        inner = csc_array(psi.T @ column).toarray().ravel()
        inner[worst] = 0.0
        other = int(np.abs(inner).argmax())
        raise BasisError(
            f"basis: expected orthonormal columns; column '{names[worst]}' has length {norm:.6g} "
            f"and inner product {inner[other]:.3g} with column '{names[other]}'."
        )
