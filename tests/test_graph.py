"""Neighbour graphs and paths against brute force."""

import itertools

import numpy as np
import pytest
from scipy.sparse import csgraph

from vhp_jax import graph as graph_lib
from vhp_jax.graph import (
    DisconnectedGraphError,
    bridge_components,
    build_graph,
    find_jumps,
    nearest_neighbours,
    resample_path,
    shortest_path,
    shortest_paths,
)


def brute_force_lengths(nodes, num_neighbours):
    """Dense [N, N] edge lengths, inf where there is no edge."""
    distances = np.linalg.norm(nodes[:, None] - nodes[None], axis=-1)
    lengths = np.full(distances.shape, np.inf)
    for i, row in enumerate(distances):
        row = row.copy()
        row[i] = np.inf
        for j in np.argsort(row, kind="stable")[:num_neighbours]:
            lengths[i, j] = lengths[j, i] = distances[i, j]
    return lengths


def floyd_warshall(lengths):
    """All shortest path lengths of a dense [N, N] directed graph."""
    best = lengths.copy()
    np.fill_diagonal(best, 0.0)
    for k in range(len(best)):
        best = np.minimum(best, best[:, k, None] + best[None, k])
    return best


def brute_force_path_length(nodes, num_neighbours, start, end):
    """Shortest path with both end points joined to nodes of the graph only."""
    num_nodes = len(nodes)
    lengths = np.full((num_nodes + 2, num_nodes + 2), np.inf)
    lengths[:-2, :-2] = brute_force_lengths(nodes, num_neighbours)
    for new, point in ((num_nodes, start), (num_nodes + 1, end)):
        distances = np.linalg.norm(nodes - point, axis=1)
        for j in np.argsort(distances)[:num_neighbours]:
            lengths[new, j] = lengths[j, new] = distances[j]
    return floyd_warshall(lengths)[num_nodes, num_nodes + 1]


def line_graph():
    return build_graph(np.arange(11.0)[:, None], 2)


@pytest.mark.parametrize(
    ("dim", "num_neighbours"), [(1, 1), (2, 5), (3, 1), (8, 7), (20, 3)]
)
def test_edges_are_the_union_of_brute_force_neighbours(dim, num_neighbours):
    nodes = np.random.default_rng(dim).normal(size=(60, dim))
    graph = build_graph(nodes, num_neighbours)
    expected = brute_force_lengths(nodes, num_neighbours)
    expected[np.isinf(expected)] = 0.0  # no duplicates here: zero means no edge
    np.testing.assert_allclose(graph.adjacency.toarray(), expected, rtol=1e-12)
    assert (graph.adjacency != graph.adjacency.T).nnz == 0


def test_union_holds_edges_wanted_by_one_side_only():
    # Node 3 is far out: nobody's neighbour, yet joined by its own choice.
    graph = build_graph(np.array([[0.0], [1.0], [2.0], [9.0]]), 1)
    assert [2, 3] in graph.edges.tolist()
    assert graph.adjacency[3, 2] == graph.adjacency[2, 3] == 7.0


def test_edges_list_each_edge_once_with_its_length():
    nodes = np.random.default_rng(0).normal(size=(40, 2))
    graph = build_graph(nodes, 4)
    i, j = graph.edges.T
    assert (i < j).all()
    assert 2 * len(graph.edges) == graph.adjacency.nnz
    np.testing.assert_allclose(
        graph.edge_lengths, np.linalg.norm(nodes[i] - nodes[j], axis=1)
    )


def test_duplicate_nodes_keep_their_zero_length_edges():
    # Two sites of five equal nodes, joined only through zero-length edges and the
    # one node between them.
    nodes = np.array([[0.0, 0.0]] * 5 + [[1.0, 0.0]] * 5 + [[0.5, 0.0]])
    graph = build_graph(nodes, 6)
    assert graph.component_sizes.tolist() == [11]
    zero = graph.edge_lengths == 0.0
    # Each of the 10 pairs of each site: six neighbours include all four equals.
    assert zero.sum() == 20
    assert not (graph.edges[:, 0] == graph.edges[:, 1]).any()
    path = shortest_path(graph, [0.0, 0.0], [1.0, 0.0])
    assert path.length == pytest.approx(1.0)


@pytest.mark.parametrize("dim", [2, 20])
def test_more_duplicates_than_neighbours(dim):
    # The query need not find the node itself among so many equals.
    graph = build_graph(np.zeros((30, dim)), 3)
    assert not (graph.edges[:, 0] == graph.edges[:, 1]).any()
    degrees = np.bincount(graph.edges.ravel(), minlength=30)
    assert degrees.min() >= 3
    assert graph.edge_lengths.max() == 0.0


def test_zero_length_edges_are_walked():
    graph = build_graph(np.array([[0.0], [0.0], [5.0], [5.0]]), 1)
    assert graph.edges.tolist() == [[0, 1], [2, 3]]
    assert graph.component_sizes.tolist() == [2, 2]
    distances = csgraph.dijkstra(graph.adjacency)
    assert distances[0, 1] == distances[2, 3] == 0.0
    assert np.isinf(distances[0, 2])


@pytest.mark.parametrize("seed", range(8))
def test_path_lengths_equal_floyd_warshall(seed):
    rng = np.random.default_rng(seed)
    nodes = rng.normal(size=(50, 2))
    num_neighbours = 6
    graph = build_graph(nodes, num_neighbours)
    starts, ends = rng.normal(size=(2, 12, 2))
    paths = shortest_paths(graph, starts, ends)
    assert len(paths) == 12
    for start, end, path in zip(starts, ends, paths, strict=True):
        expected = brute_force_path_length(nodes, num_neighbours, start, end)
        assert path.length == pytest.approx(expected, rel=1e-12)


def test_a_path_is_made_of_edges_and_its_length_is_their_sum():
    rng = np.random.default_rng(1)
    nodes = rng.normal(size=(200, 3))
    graph = build_graph(nodes, 6)
    edges = set(map(tuple, graph.edges.tolist()))
    starts, ends = rng.normal(size=(2, 20, 3))
    for start, end, path in zip(
        starts, ends, shortest_paths(graph, starts, ends), strict=True
    ):
        passed = path.node_indices
        assert path.points.shape == (len(passed) + 2, 3)
        np.testing.assert_array_equal(path.points[0], start)
        np.testing.assert_array_equal(path.points[-1], end)
        np.testing.assert_array_equal(path.points[1:-1], nodes[passed])
        for i, j in itertools.pairwise(passed):
            assert (min(i, j), max(i, j)) in edges
        for point, node in ((start, passed[0]), (end, passed[-1])):
            nearest = np.argsort(np.linalg.norm(nodes - point, axis=1))[:6]
            assert node in nearest
        steps = np.linalg.norm(np.diff(path.points, axis=0), axis=1)
        assert path.length == pytest.approx(steps.sum(), rel=1e-12)


def test_single_pair_equals_the_pair_among_many(monkeypatch):
    rng = np.random.default_rng(2)
    graph = build_graph(rng.normal(size=(100, 2)), 6)
    starts, ends = rng.normal(size=(2, 7, 2))
    single = [shortest_path(graph, *pair) for pair in zip(starts, ends, strict=True)]
    monkeypatch.setattr(graph_lib, "_PAIRS_PER_SEARCH", 3)
    for one, many in zip(single, shortest_paths(graph, starts, ends), strict=True):
        np.testing.assert_array_equal(one.node_indices, many.node_indices)
        assert one.length == many.length


def test_no_path_leads_through_an_end_point():
    # Two clusters, bridged only by the end points of the other pair.
    nodes = np.array([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
    graph = build_graph(nodes, 2)
    with pytest.raises(DisconnectedGraphError) as caught:
        shortest_paths(graph, [[0.0], [2.5]], [[5.0], [2.7]])
    assert 0 in caught.value.pairs


def test_equal_end_points_go_by_the_nearest_node():
    path = shortest_path(line_graph(), [3.2], [3.2])
    assert path.node_indices.tolist() == [3]
    assert path.length == pytest.approx(0.4)
    on_a_node = shortest_path(line_graph(), [3.0], [3.0])
    assert on_a_node.points.ravel().tolist() == [3.0, 3.0, 3.0]
    assert on_a_node.length == 0.0


def test_line_has_the_exact_length():
    path = shortest_path(line_graph(), [0.25], [9.5])
    assert path.length == pytest.approx(9.25, rel=1e-14)
    assert (np.diff(path.points.ravel()) > 0).all()
    # Outside the nodes the ends are joined to the nearest of them all the same.
    assert shortest_path(line_graph(), [-4.0], [12.0]).length == pytest.approx(16.0)


def test_components_are_numbered_by_size():
    nodes = np.concatenate([np.arange(3.0), 100 + np.arange(5.0), -100 - np.arange(4)])
    graph = build_graph(nodes[:, None], 2)
    assert graph.component_sizes.tolist() == [5, 4, 3]
    assert graph.components.tolist() == [2] * 3 + [0] * 5 + [1] * 4


def test_disconnected_graph_is_explained_in_one_line():
    nodes = np.concatenate([np.arange(3.0), 100 + np.arange(5.0), -100 - np.arange(4)])
    graph = build_graph(nodes[:, None], 2)
    with pytest.raises(DisconnectedGraphError) as caught:
        shortest_path(graph, [0.0], [101.0])
    assert str(caught.value) == (
        "no path: the graph of 12 nodes has 3 components (sizes 5, 4, 3); start joins "
        "component 2 (3 nodes), end joins component 0 (5 nodes), 98 apart; try a "
        "larger num_neighbours (now 2) or more nodes"
    )
    assert isinstance(caught.value, ValueError)


def test_disconnected_pairs_are_named_among_many():
    graph = build_graph(np.array([[0.0], [1.0], [50.0], [51.0]]), 1)
    with pytest.raises(DisconnectedGraphError, match=r"^pair 1 \(2 of 4 fail\): ") as e:
        shortest_paths(graph, [[0.0], [0.0], [50.0], [51.0]], [[1], [51], [51], [0]])
    assert e.value.pairs == (1, 3)


def test_no_pairs_no_paths():
    assert shortest_paths(line_graph(), np.zeros((0, 1)), np.zeros((0, 1))) == []


@pytest.mark.parametrize("num_neighbours", [0, 4, 5])
def test_build_graph_wants_neighbours_in_range(num_neighbours):
    wanted = f"num_neighbours is {num_neighbours}; wanted from 1 to 3"
    with pytest.raises(ValueError, match=wanted):
        build_graph(np.eye(4), num_neighbours)


def test_build_graph_names_the_first_non_finite_value():
    nodes = np.ones((5, 3))
    nodes[2, 1], nodes[4, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"^nodes holds nan at \[2, 1\].* 2 such"):
        build_graph(nodes, 2)


def test_build_graph_wants_a_matrix():
    with pytest.raises(ValueError, match=r"nodes has shape \(4,\); wanted \[N, D\]"):
        build_graph(np.zeros(4), 1)


@pytest.mark.parametrize(
    ("starts", "ends", "message"),
    [
        ([[0.0, 1.0]], [[0.0]], r"starts has shape \(1, 2\); wanted \[P, 1\]"),
        ([[0.0]], [[np.inf]], r"ends holds inf at \[0, 0\]"),
        ([[0.0]], [[0.0], [1.0]], "1 starts but 2 ends"),
    ],
)
def test_end_points_are_checked(starts, ends, message):
    with pytest.raises(ValueError, match=message):
        shortest_paths(line_graph(), starts, ends)


def test_find_jumps_marks_large_steps_only():
    frames = np.zeros((6, 2, 2))
    frames[:, 0, 0] = [0.0, 1.0, 2.0, 12.0, 13.0, 14.5]
    jumps = find_jumps(frames, factor=3.0)
    assert jumps.dtype == bool
    assert jumps.tolist() == [False, False, True, False, False]
    assert not find_jumps(frames, factor=10.0).any()  # larger than, not equal to
    assert find_jumps(frames, factor=9.9).sum() == 1
    assert find_jumps(1e-3 * frames).tolist() == jumps.tolist()


def test_find_jumps_takes_the_euclidean_norm_of_a_whole_frame():
    # Each pixel of the third step moves by 2, in all by 2 * sqrt(16) = 8.
    frames = np.zeros((4, 16))
    frames[1:, 0] += 1.0
    frames[2:, 1] += 1.0
    frames[3:] += 2.0
    assert find_jumps(frames, factor=7.9).tolist() == [False, False, True]
    assert not find_jumps(frames, factor=8.1).any()


def test_find_jumps_where_most_frames_stand_still():
    frames = np.zeros((9, 1))
    assert not find_jumps(frames).any()
    frames[5:] = 0.1  # one change: 8 times the mean step
    frames[7:] += 1e-6  # a trace of a change, far below it
    assert np.flatnonzero(find_jumps(frames)).tolist() == [4]


@pytest.mark.parametrize("num_frames", [1, 2])
def test_short_paths_have_no_jumps(num_frames):
    frames = np.arange(num_frames, dtype=float)[:, None] * 100
    assert find_jumps(frames, factor=0.5).tolist() == [False] * (num_frames - 1)


def test_find_jumps_checks_its_arguments():
    with pytest.raises(ValueError, match="factor is 0; wanted a positive"):
        find_jumps(np.zeros((3, 1)), factor=0)
    with pytest.raises(ValueError, match=r"frames has shape \(0, 4\)"):
        find_jumps(np.zeros((0, 4)))
    with pytest.raises(ValueError, match="frames holds nan"):
        find_jumps(np.full((3, 2), np.nan))


def test_resample_spaces_points_evenly_along_the_polyline():
    # An L of lengths 3 and 1, one corner point repeated.
    corner = np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 0.0], [3.0, 1.0]])
    points = resample_path(corner, 9)
    expected = [[x / 2, 0.0] for x in range(7)] + [[3.0, 0.5], [3.0, 1.0]]
    np.testing.assert_allclose(points, expected, atol=1e-15)


def test_resample_keeps_the_end_points_exactly():
    rng = np.random.default_rng(3)
    polyline = rng.normal(size=(30, 5)) * 1e3
    points = resample_path(polyline, 7)
    np.testing.assert_array_equal(points[[0, -1]], polyline[[0, -1]])
    np.testing.assert_array_equal(resample_path(np.ones((3, 2)), 4), np.ones((4, 2)))


def test_resample_checks_its_arguments():
    with pytest.raises(ValueError, match="num is 1; wanted at least 2"):
        resample_path(np.zeros((3, 2)), 1)
    with pytest.raises(ValueError, match=r"\(1, 2\); wanted at least 2 points"):
        resample_path(np.zeros((1, 2)), 3)


# --- Bridges and neighbours ----------------------------------------------------------


def test_bridges_are_the_shortest_spanning_tree_of_the_components():
    rng = np.random.default_rng(3)
    centres = np.array(
        [[0.0, 0.0], [9.0, 0.0], [0.0, 12.0], [30.0, 30.0], [33.0, 18.0]]
    )
    nodes = np.concatenate([c + 0.5 * rng.normal(size=(12, 2)) for c in centres])
    graph = build_graph(nodes, 3)
    assert len(graph.component_sizes) >= 5
    bridged = bridge_components(graph)
    assert len(bridged.component_sizes) == 1
    added = {*map(tuple, bridged.edges)} - {*map(tuple, graph.edges)}
    assert len(added) == len(graph.component_sizes) - 1
    assert {*map(tuple, graph.edges)} <= {*map(tuple, bridged.edges)}
    # Kruskal over all pairs of nodes, brute force.
    distances = np.linalg.norm(nodes[:, None] - nodes, axis=-1)
    labels, wanted = graph.components.copy(), set()
    for i, j in sorted(
        itertools.combinations(range(len(nodes)), 2), key=lambda ij: distances[ij]
    ):
        if labels[i] != labels[j]:
            wanted.add((i, j))
            labels[labels == labels[j]] = labels[i]
    assert added == wanted
    lengths = dict(zip(map(tuple, bridged.edges), bridged.edge_lengths, strict=True))
    for edge in added:
        assert lengths[edge] == pytest.approx(distances[edge], rel=1e-12)


def test_bridges_join_far_ends_and_leave_a_connected_graph_alone():
    graph = line_graph()
    assert bridge_components(graph) is graph
    apart = build_graph(np.array([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])[:, None], 1)
    with pytest.raises(DisconnectedGraphError):
        shortest_path(apart, [0.0], [12.0])
    path = shortest_path(bridge_components(apart), [0.0], [12.0])
    assert path.length == pytest.approx(12.0)
    assert path.node_indices.tolist() == [0, 1, 2, 3, 4, 5]


def test_bridges_of_equal_length_close_no_ring():
    # Each side's first node has a partner of its own, all 5 away.
    nodes = np.array([[0.0, 0.0], [0.0, 1.0], [5.0, 1.0], [5.0, 0.0]])
    graph = build_graph(nodes, 1)
    assert len(graph.component_sizes) == 2
    bridged = bridge_components(graph)
    assert len(bridged.component_sizes) == 1
    assert len(bridged.edges) == len(graph.edges) + 1


@pytest.mark.parametrize("dim", [3, 20])
def test_nearest_neighbours_are_those_of_brute_force_and_never_the_point_itself(dim):
    # Far from the origin, where squares of coordinates would lose the distances.
    points = np.random.default_rng(0).normal(1e7, 1.0, size=(40, dim))
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    np.fill_diagonal(distances, np.inf)
    found = nearest_neighbours(points, 4)
    np.testing.assert_array_equal(found, np.argsort(distances, axis=1)[:, :4])
    twins = nearest_neighbours(np.zeros((7, dim)), 2)
    assert (twins != np.arange(7)[:, None]).all()
    with pytest.raises(ValueError, match="num_neighbours is 7; wanted from 1 to 6"):
        nearest_neighbours(np.zeros((7, 2)), 7)
