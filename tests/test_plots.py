import networkx as nx
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy.sparse import csr_array
from scipy.stats import entropy

from countvae import plots

Y = np.random.default_rng(0).standard_normal((12, 3))


@pytest.fixture
def ax():
    return Figure().subplots()


def test_each_function_draws_where_it_is_told_and_returns_it(ax):
    history = pd.DataFrame({"epoch": [1, 2], "bound": [-2.0, -1.0]})
    frame = pd.DataFrame({"F1": [1.0, -2.0]}, index=["a", "b"])
    assert plots.ordination(Y, ax=ax) is ax
    assert plots.agreement(Y, Y, ax=ax) is ax
    assert plots.history(history, ax=ax) is ax
    assert plots.loadings(frame, ax=ax) is ax


def test_without_axes_a_new_figure_is_made():
    with plt.rc_context({"backend": "agg"}):
        ax = plots.ordination(Y)
    assert ax.figure.axes == [ax]
    plt.close(ax.figure)


def test_the_chosen_coordinates_are_drawn_on_one_scale(ax):
    plots.ordination(Y, axes=(2, 0), ratio=np.array([0.5, 0.3, 0.2]), ax=ax)
    assert np.array_equal(ax.collections[0].get_offsets(), Y[:, [2, 0]])
    assert (ax.get_xlabel(), ax.get_ylabel()) == (
        "F3 (20 % of variance)",
        "F1 (50 % of variance)",
    )
    assert ax.get_aspect() == 1


def test_groups_come_by_size_and_missing_ones_are_grey(ax):
    groups = pd.Series([None, None, *"aaaabbbbbb"], name="where")
    plots.ordination(Y, groups, ax=ax)
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["missing", "b (6)", "a (4)"]
    assert legend.get_title().get_text() == "where"
    assert np.array_equal(ax.collections[1].get_offsets(), Y[6:, :2])


def test_numbers_are_shown_on_a_scale(ax):
    plots.ordination(Y, pd.Series(np.arange(12.0), name="age"), ax=ax)
    assert np.array_equal(ax.collections[0].get_array(), np.arange(12.0))
    assert ax.figure.axes[1].get_ylabel() == "age"


def test_agreement_draws_truth_against_estimate_and_one_line(ax):
    plots.agreement(Y, 2 * Y, label="a", ax=ax)
    plots.agreement(Y, 3 * Y, label="b", ax=ax)
    points = np.asarray(ax.collections[1].get_offsets())
    np.testing.assert_allclose(points[:, 1], 3 * points[:, 0])
    assert len(ax.lines) == 1


def test_very_many_points_are_thinned(ax, monkeypatch):
    monkeypatch.setattr(plots, "MAX_POINTS", 10)
    plots.agreement(Y, Y, ax=ax)
    assert len(ax.collections[0].get_offsets()) == 9


def test_history_draws_the_bound_by_epoch_and_what_was_held_out(ax):
    history = pd.DataFrame({"epoch": [1, 2], "bound": [-2, -1], "validation_bound": [-3, -2]})
    plots.history(history, ax=ax)
    assert np.array_equal(ax.lines[0].get_xydata(), [[1, -2], [2, -1]])
    assert np.array_equal(ax.lines[1].get_xydata(), [[1, -3], [2, -2]])


def test_loadings_draws_the_largest_whatever_their_sign(ax):
    frame = pd.DataFrame({"F1": [0.0, 0.0], "F2": [0.0, 0.0]}, index=["x", "y"])
    frame = pd.concat([frame, pd.DataFrame({"F2": [3.0, -4.0]}, index=["up", "down"])])
    plots.loadings(frame, "F2", top=2, ax=ax)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["down", "up"]
    assert [patch.get_width() for patch in ax.patches] == [-4.0, 3.0]


def test_a_network_has_a_line_an_edge_and_labels_those_of_most_edges():
    G = nx.Graph()
    G.add_edge("a", "b", weight=0.9)
    G.add_edge("a", "c", weight=-0.5)
    G.add_node("alone")
    nx.set_node_attributes(G, {"a": 1, "b": 1, "c": 2}, "module")
    ax = plots.network(G, labels={"a": "Alpha"}, top=1)
    assert len([line for line in ax.lines if len(line.get_xdata())]) == 2
    assert [text.get_text() for text in ax.texts] == ["Alpha"]
    assert len(ax.collections) == 3


@pytest.mark.parametrize("size", [(8.0, 5.5), (4.0, 3.0)])
def test_names_in_a_network_lie_on_no_other_and_in_the_figure(size):
    G = nx.Graph()
    for hub in range(12):
        G.add_weighted_edges_from((f"hub {hub}", f"{hub}.{i}", 0.9) for i in range(4 + hub % 3))
        G.add_edge(f"hub {hub}", f"hub {(hub + 1) % 12}", weight=0.5)
    names = {f"hub {hub}": f"Genus speciesname ({hub})" for hub in range(12)}
    figure = plt.figure(figsize=size, layout="constrained")
    ax = plots.network(G, labels=names, top=12, ax=figure.subplots())
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert 3 <= len(boxes) <= 12 and (len(boxes) < 12 or size[0] > 5)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(figure.bbox.fully_containsx(b.x0) and b.x1 <= figure.bbox.x1 for b in boxes)
    assert {text.get_text() for text in ax.texts} <= set(names.values())
    plt.close(figure)


def test_a_name_goes_where_it_hides_no_point(ax):
    points = np.array([[0.0, 0.0], [0.04, 0.02], [0.04, -0.03], [-0.04, 0.02], [1.0, 1.0]])
    ax.scatter(*points.T)
    plots._label(ax, [("a name", points[0])], points)
    box = Text.get_window_extent(ax.texts[0])
    assert not box.count_contains(ax.transData.transform(points))


def test_a_name_without_room_is_left_out(ax):
    plots._label(ax, [("a name", np.full(2, 0.5))] * 9, np.full((1, 2), 0.5))
    assert 0 < len(ax.texts) < 9


def test_a_large_network_is_laid_out_too(monkeypatch):
    monkeypatch.setattr(plots, "BY_PATHS", 3)
    G = nx.path_graph(6)
    at = plots._laid_out(nx.disjoint_union(G, nx.path_graph(3)))
    assert np.isfinite(np.array([*at.values()])).all() and len(at) == 9
    assert max(at[i][0] for i in range(6)) < min(at[i][0] for i in range(6, 9))


def test_a_selection_shows_each_number_and_marks_the_chosen():
    table = pd.DataFrame({"k": [2, 4], "difference": [-0.1, 0.0], "difference_se": [0.02, 0.0]})
    table = table.assign(encoder_depth=2, untrusted=[0.9, 0.1], chosen=[False, True])
    ax = plots.selection(table)
    assert ax.get_xticks().tolist() == [2, 4]
    assert [text.get_text() for text in ax.texts] == ["k = 4"]
    assert ax.get_legend() is None
    untrusted, trusted = ax.collections[1].get_facecolors()
    assert untrusted[:3].tolist() == [1, 1, 1] and trusted[:3].tolist() != [1, 1, 1]
    both = pd.concat([table, table.assign(encoder_depth=3, chosen=False)], ignore_index=True)
    named = [text.get_text() for text in plots.selection(both).get_legend().get_texts()]
    assert named == ["encoder depth 2", "encoder depth 3"]


def test_drawn_tables_are_shown_beside_the_observed():
    counts = csr_array(np.random.default_rng(0).poisson(1.0, (20, 6)))
    axes = plots.predictive(counts, counts)
    assert len(axes) == 4
    for ax in axes[:3]:
        observed, drawn = ax.lines
        np.testing.assert_array_equal(observed.get_xdata(), drawn.get_xdata())
    depths, effective = (np.array(ax.lines[0].get_xdata()) for ax in axes[1:3])
    np.testing.assert_array_equal(depths, np.sort(counts.sum(axis=1)))
    shares = counts.toarray() / counts.sum(axis=1)[:, None]
    np.testing.assert_allclose(effective, np.sort(np.exp(entropy(shares, axis=1))))


def test_a_biplot_has_the_longest_arrows_and_no_two_labels_on_one_another():
    rng = np.random.default_rng(0)
    V = rng.standard_normal((60, 3)) * np.r_[np.full(12, 3.0), np.ones(48)][:, None]
    V[:12, 1] = 3 + 0.01 * rng.standard_normal(12)  # all of them point the same way
    frame = pd.DataFrame(V, [f"feature {j}" for j in range(60)], ["F1", "F2", "F3"])
    ax = plots.biplot(Y, frame, top=10, labels={"feature 0": "first"}, ax=plt.figure().subplots())
    texts = [text for text in ax.texts if text.get_text()]
    unit = frame / np.linalg.norm(frame, axis=0)
    longest = np.linalg.norm(unit[["F1", "F2"]], axis=1).argsort()[::-1][:10]
    names = {"first" if j == 0 else f"feature {j}" for j in longest}
    assert {text.get_text() for text in texts} == names
    ax.figure.canvas.draw()
    boxes = [Text.get_window_extent(text) for text in texts]  # without its arrow
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    plt.close(ax.figure)


@pytest.mark.parametrize("heights", [[], [1.0], [0.0, 0.0, 0.0], [3.0, 1.0, 1.1, 1.2, -4.0]])
def test_labels_move_apart_as_little_as_need_be(heights):
    placed = plots._apart(np.array(heights), 0.5)
    assert (np.diff(np.sort(placed)) >= 0.5 - 1e-9).all()
    assert list(np.argsort(placed, kind="stable")) == list(np.argsort(heights, kind="stable"))
    assert np.sum(placed) == pytest.approx(np.sum(heights))
    if len(heights) == 5:
        np.testing.assert_allclose(placed, [3.0, 0.6, 1.1, 1.6, -4.0])
