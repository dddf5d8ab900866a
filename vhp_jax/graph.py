"""Graph-based interpolation along the learned latent manifold (Sec. 2.3).

Samples of the prior are the nodes of a neighbour graph; the interpolation between
two encoded data points is the shortest path through it, decoded. Plain numpy in and
out: nothing here knows the model.

The paper suggests A* for the search. Dijkstra's algorithm is used instead: both
return a shortest path, so the result is the same, and one compiled Dijkstra call
serves many pairs at once.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array, csgraph, csr_array
from scipy.spatial import cKDTree

_PAIRS_PER_SEARCH = 256  # bounds the memory of one search: pairs * (N + 2 * pairs)
_MOST_TREE_DIMENSIONS = 15  # beyond, a k-d tree visits most nodes anyway
_NO_PREDECESSOR = -9999  # scipy.sparse.csgraph's mark


class DisconnectedGraphError(ValueError):
    """No path joins the two end points of at least one pair.

    Attributes:
      pairs: positions, in the call's order, of all pairs without a path.
    """

    def __init__(self, message: str, pairs: tuple[int, ...]) -> None:
        super().__init__(message)
        self.pairs = pairs


@dataclasses.dataclass(frozen=True, eq=False)
class LatentGraph:
    """An undirected neighbour graph in latent space; made by `build_graph`.

    Attributes:
      nodes: float64 [N, D].
      num_neighbours: neighbours that each node, and each end point, is joined to.
      adjacency: float64 sparse [N, N], symmetric; the stored entries are the edges,
        their values Euclidean lengths. An edge between duplicate nodes is a
        stored zero, so do not call `eliminate_zeros` or take `maximum` with it.
      components: int [N], the connected component of each node; 0 is the largest.
      tree: the nodes' k-d tree.
    """

    nodes: NDArray[np.float64]
    num_neighbours: int
    adjacency: csr_array = dataclasses.field(repr=False)
    components: NDArray[np.intp] = dataclasses.field(repr=False)
    tree: cKDTree = dataclasses.field(repr=False)

    @property
    def edges(self) -> NDArray[np.intp]:
        """Each undirected edge once: int [E, 2], smaller index first, sorted."""
        rows, columns, _ = _entries(self.adjacency)
        upper = rows < columns
        return np.stack([rows[upper], columns[upper]], axis=1)

    @property
    def edge_lengths(self) -> NDArray[np.float64]:
        """Euclidean lengths of `edges`: float64 [E]."""
        rows, columns, lengths = _entries(self.adjacency)
        return lengths[rows < columns]

    @property
    def component_sizes(self) -> NDArray[np.intp]:
        """Nodes in each connected component, largest first: int [num_components]."""
        return np.bincount(self.components)


class Path(NamedTuple):
    """A shortest path between two end points.

    Attributes:
      points: float64 [L, D], L >= 3: start, graph nodes, end.
      node_indices: int [L - 2], the graph nodes passed.
      length: sum of the Euclidean lengths of its L - 1 edges.
    """

    points: NDArray[np.float64]
    node_indices: NDArray[np.intp]
    length: float


def build_graph(nodes: ArrayLike, num_neighbours: int) -> LatentGraph:
    """Joins each node to its nearest neighbours by undirected edges (Sec. 2.3).

    Nodes i and j share an edge if either is among the `num_neighbours` nearest of the
    other. Neighbours are exact; 10,000 nodes in 32 dimensions take about a second.

    Args:
      nodes: [N, D], finite; samples of the prior, z_n (Eq. 14).
      num_neighbours: 1 <= num_neighbours < N.

    Returns:
      The graph, edges weighted by Euclidean distance.

    Raises:
      ValueError: `nodes` is not a finite 2-d array or `num_neighbours` not in range.
    """
    nodes = _finite_matrix("nodes", nodes)
    num_nodes = len(nodes)
    if not 1 <= num_neighbours < num_nodes:
        raise ValueError(
            f"num_neighbours is {num_neighbours}; wanted from 1 to "
            f"{num_nodes - 1}, one less than the {num_nodes} nodes"
        )

    # 1. Nearest neighbours.
    tree = cKDTree(nodes)
    targets = _neighbours(tree, num_neighbours).ravel()  # [N * k]
    sources = np.repeat(np.arange(num_nodes), num_neighbours)

    # 2. Union of the directed edges. Built from pairs: sparse sums and maxima would
    #    double the weights or drop the zero-length edges.
    low, high = np.minimum(sources, targets), np.maximum(sources, targets)
    low, high = np.divmod(np.unique(low * num_nodes + high), num_nodes)  # [E]
    adjacency = _undirected(nodes, low, high)
    return LatentGraph(nodes, num_neighbours, adjacency, _components(adjacency), tree)


def bridge_components(graph: LatentGraph) -> LatentGraph:
    """Joins the connected components by their shortest bridges, so that all are one.

    Each component is joined to the node nearest to it of all others, until one is left
    (Boruvka's minimum spanning tree over the components). A path over a bridge leaves
    the manifold on its way. The paper does not say what it does about components.

    Args:
      graph: of `build_graph`.

    Returns:
      A connected graph: the same nodes and edges and, where there were C components,
      C - 1 edges more; `graph` itself where it is connected.
    """
    low, high = graph.edges.T
    while len(np.unique(graph.components)) > 1:
        bridges = []
        for label in np.unique(graph.components):
            own = np.flatnonzero(graph.components == label)
            others = np.flatnonzero(graph.components != label)
            distances, nearest = cKDTree(graph.nodes[others]).query(graph.nodes[own])
            at = int(np.argmin(distances))
            ends = own[at], others[nearest[at]]
            bridges.append((distances[at], min(ends), max(ends)))
        # One by one, the shortest first: of bridges that would close a ring, one goes.
        for _, first, second in sorted(set(bridges)):
            if graph.components[first] == graph.components[second]:
                continue
            low, high = np.append(low, first), np.append(high, second)
            adjacency = _undirected(graph.nodes, low, high)
            graph = dataclasses.replace(
                graph, adjacency=adjacency, components=_components(adjacency)
            )
    return graph


def nearest_neighbours(
    points: ArrayLike, num_neighbours: int, of: ArrayLike | None = None
) -> NDArray[np.intp]:
    """The points nearest to each point, itself left out, or to other points; exact.

    Args:
      points: [N, D], finite.
      num_neighbours: 1 <= num_neighbours < N.
      of: [M, D], whose neighbours are sought; None for the points themselves.

    Returns:
      int [N or M, num_neighbours], nearest first.

    Raises:
      ValueError: arrays are not finite or not 2-d, or `num_neighbours` not in range.
    """
    points = _finite_matrix("points", points)
    if not 1 <= num_neighbours < len(points):
        raise ValueError(
            f"num_neighbours is {num_neighbours}; wanted from 1 to {len(points) - 1}, "
            f"one less than the {len(points)} points"
        )
    tree = cKDTree(points)
    if of is None:
        return _neighbours(tree, num_neighbours)
    wanted = _finite_matrix("of", of)
    _, found = tree.query(wanted, k=range(1, num_neighbours + 1), workers=-1)
    return found


def shortest_path(graph: LatentGraph, start: ArrayLike, end: ArrayLike) -> Path:
    """Returns the shortest path between two encoded points (Sec. 2.3).

    Args:
      graph: of `build_graph`.
      start: [D], usually the posterior mean of a data point.
      end: [D].

    Returns:
      The path; see `shortest_paths`.

    Raises:
      ValueError: an end point is not finite or not [D].
      DisconnectedGraphError: there is no path.
    """
    return shortest_paths(graph, np.asarray(start)[None], np.asarray(end)[None])[0]


def shortest_paths(
    graph: LatentGraph, starts: ArrayLike, ends: ArrayLike
) -> list[Path]:
    """Returns the exact shortest path of each pair of end points (Sec. 2.3).

    An end point is a new node, joined to its `graph.num_neighbours` nearest nodes of
    the graph and to nothing else: no path passes through another end point, and each
    passes through at least one node, also where start and end coincide.

    Args:
      graph: of `build_graph`.
      starts: [P, D], finite.
      ends: [P, D], finite.

    Returns:
      P paths, in order.

    Raises:
      ValueError: end points are not finite or not [P, D].
      DisconnectedGraphError: at least one pair has no path; its message tells of
        the first, its attribute `pairs` names all.
    """
    starts = _end_points("starts", starts, graph)
    ends = _end_points("ends", ends, graph)
    if len(starts) != len(ends):
        raise ValueError(f"{len(starts)} starts but {len(ends)} ends; wanted as many")
    paths: list[Path | None] = []
    for first in range(0, len(starts), _PAIRS_PER_SEARCH):
        chunk = slice(first, first + _PAIRS_PER_SEARCH)
        paths += _search(graph, starts[chunk], ends[chunk])
    missing = tuple(pair for pair, path in enumerate(paths) if path is None)
    if missing:
        pair = missing[0]
        message = _explain_gap(graph, starts[pair], ends[pair])
        if len(paths) > 1:
            message = f"pair {pair} ({len(missing)} of {len(paths)} fail): {message}"
        raise DisconnectedGraphError(message, missing)
    return [path for path in paths if path is not None]


def find_jumps(frames: ArrayLike, factor: float = 3.0) -> NDArray[np.bool_]:
    """Marks the discontinuities of a decoded path (boxed in blue in Figs. 4, 7, 19).

    The step between neighbouring frames is their Euclidean distance. A step is a jump
    if it is larger than `factor` times the median step of this path. Where more than
    half of the steps are zero, the mean step stands in for the median. The paper does
    not define its marks; this rule is ours.

    Args:
      frames: [L, ...], decoded frames in path order.
      factor: > 0; larger marks fewer.

    Returns:
      bool [L - 1], True where frame l + 1 is a jump away from frame l. A path of
      fewer than three frames has no other step to compare with, hence no jump.

    Raises:
      ValueError: there is no frame, a frame is not finite or `factor` not positive.
    """
    frames = np.asarray(frames, np.float64)
    if frames.ndim == 0 or frames.size == 0:
        raise ValueError(f"frames has shape {frames.shape}; wanted [L, ...], L >= 1")
    if not factor > 0:
        raise ValueError(f"factor is {factor}; wanted a positive number")
    frames = _finite_matrix("frames", frames.reshape(len(frames), -1))
    if len(frames) < 3:
        return np.zeros(len(frames) - 1, bool)
    steps = np.linalg.norm(np.diff(frames, axis=0), axis=1)  # [L - 1]
    typical = np.median(steps) or np.mean(steps)
    return np.asarray(steps > factor * typical)


def resample_path(points: ArrayLike, num: int) -> NDArray[np.float64]:
    """Spaces points evenly by arc length along a polyline.

    Args:
      points: [L, D], finite, L >= 2; for example `Path.points`.
      num: number of points wanted, at least 2.

    Returns:
      float64 [num, D] on the polyline, its two end points kept exactly.

    Raises:
      ValueError: `points` is not finite, not [L >= 2, D], or `num` < 2.
    """
    points = _finite_matrix("points", points)
    if len(points) < 2:
        raise ValueError(f"points has shape {points.shape}; wanted at least 2 points")
    if num < 2:
        raise ValueError(f"num is {num}; wanted at least 2, the two end points")
    # Repeated points add no arc length; np.interp wants it to increase.
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)  # [L - 1]
    kept = points[np.concatenate([[True], steps > 0])]
    arc = np.concatenate([[0.0], np.cumsum(steps[steps > 0])])
    wanted = np.linspace(0.0, arc[-1], num)
    return np.stack([np.interp(wanted, arc, axis) for axis in kept.T], axis=1)


def _neighbours(tree: cKDTree, num_neighbours: int) -> NDArray[np.intp]:
    """Nearest neighbours of the tree's own points: int [N, num_neighbours]."""
    # The query also finds the point itself, or, where more than num_neighbours points
    # coincide with it, one duplicate too many.
    if tree.m > _MOST_TREE_DIMENSIONS:
        from sklearn.neighbors import NearestNeighbors

        centred = tree.data - tree.data.mean(axis=0)  # squares lose fewer digits
        brute = NearestNeighbors(algorithm="brute", n_jobs=-1).fit(centred)
        found = brute.kneighbors(centred, num_neighbours + 1, return_distance=False)
    else:
        _, found = tree.query(tree.data, k=num_neighbours + 1, workers=-1)  # [N, k + 1]
    surplus = found == np.arange(tree.n)[:, None]
    surplus[~surplus.any(axis=1), -1] = True
    return found[~surplus].reshape(tree.n, num_neighbours)


def _undirected(
    nodes: NDArray[np.float64], low: NDArray[np.intp], high: NDArray[np.intp]
) -> csr_array:
    """Symmetric adjacency of distinct edges, weighted by Euclidean distance."""
    lengths = np.linalg.norm(nodes[low] - nodes[high], axis=1)
    return _sparse(
        np.concatenate([low, high]),
        np.concatenate([high, low]),
        np.concatenate([lengths, lengths]),
        len(nodes),
    )


def _components(adjacency: csr_array) -> NDArray[np.intp]:
    """Connected component of each node, the largest first."""
    num_components, labels = csgraph.connected_components(adjacency, directed=False)
    by_size = np.argsort(-np.bincount(labels), kind="stable")
    rank = np.empty(num_components, np.intp)
    rank[by_size] = np.arange(num_components)
    return rank[labels]


def _search(
    graph: LatentGraph, starts: NDArray[np.float64], ends: NDArray[np.float64]
) -> list[Path | None]:
    """Searches all pairs in one call; None where a pair has no path."""
    num_nodes, num_pairs = len(graph.nodes), len(starts)
    start_nodes = num_nodes + np.arange(num_pairs)
    end_nodes = start_nodes + num_pairs
    points = np.concatenate([graph.nodes, starts, ends])

    # 1. Starts have outgoing edges only, ends incoming ones only: with directed
    #    edges all end points fit into one graph and none becomes a way through.
    rows, columns, lengths = _entries(graph.adjacency)
    k = graph.num_neighbours
    start_lengths, start_joins = graph.tree.query(starts, k=range(1, k + 1))  # [P, k]
    end_lengths, end_joins = graph.tree.query(ends, k=range(1, k + 1))  # [P, k]
    joined = _sparse(
        np.concatenate([rows, np.repeat(start_nodes, k), end_joins.ravel()]),
        np.concatenate([columns, start_joins.ravel(), np.repeat(end_nodes, k)]),
        np.concatenate([lengths, start_lengths.ravel(), end_lengths.ravel()]),
        num_nodes + 2 * num_pairs,
    )

    # 2. One search from every start.
    distances, predecessors = csgraph.dijkstra(
        joined, directed=True, indices=start_nodes, return_predecessors=True
    )  # [P, N + 2P]

    # 3. Walk back from every end.
    paths: list[Path | None] = []
    for pair, end_node in enumerate(end_nodes):
        if np.isinf(distances[pair, end_node]):
            paths.append(None)
            continue
        walk = [end_node]
        while (before := predecessors[pair, walk[-1]]) != _NO_PREDECESSOR:
            walk.append(before)
        order = np.array(walk[::-1], np.intp)  # [L]
        length = float(distances[pair, end_node])
        paths.append(Path(points[order], order[1:-1], length))
    return paths


def _explain_gap(
    graph: LatentGraph, start: NDArray[np.float64], end: NDArray[np.float64]
) -> str:
    """Says in one line which components keep two end points apart."""
    k = graph.num_neighbours
    sizes = graph.component_sizes
    _, joins = graph.tree.query(np.stack([start, end]), k=range(1, k + 1))  # [2, k]
    reached = [np.unique(graph.components[nodes]) for nodes in joins]
    sides = [graph.nodes[np.isin(graph.components, labels)] for labels in reached]
    gap = cKDTree(sides[0]).query(sides[1], workers=-1)[0].min()
    names = [
        " and ".join(f"component {label} ({sizes[label]} nodes)" for label in labels)
        for labels in reached
    ]
    largest = ", ".join(map(str, sizes[:5])) + (", ..." if len(sizes) > 5 else "")
    return (
        f"no path: the graph of {len(graph.nodes)} nodes has {len(sizes)} components "
        f"(sizes {largest}); start joins {names[0]}, end joins {names[1]}, "
        f"{gap:.4g} apart; try a larger num_neighbours (now {k}) or more nodes"
    )


def _entries(
    matrix: csr_array,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
    """Returns rows, columns and values of all stored entries, zeros included."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return rows, matrix.indices.astype(np.intp), matrix.data


def _sparse(
    rows: NDArray[np.intp],
    columns: NDArray[np.intp],
    lengths: NDArray[np.float64],
    size: int,
) -> csr_array:
    """Builds [size, size] from distinct entries, keeping zeros as entries."""
    indices = rows.astype(np.int32), columns.astype(np.int32)  # what csgraph takes
    return coo_array((lengths, indices), shape=(size, size)).tocsr()


def _end_points(
    name: str, points: ArrayLike, graph: LatentGraph
) -> NDArray[np.float64]:
    points = _finite_matrix(name, points)
    if points.shape[1] != graph.nodes.shape[1]:
        raise ValueError(
            f"{name} has shape {points.shape}; wanted [P, {graph.nodes.shape[1]}], "
            "the dimension of the graph's nodes"
        )
    return points


def _finite_matrix(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Returns `values` as float64 [N, D], or says why not."""
    matrix = np.asarray(values, np.float64)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{name} has shape {matrix.shape}; wanted [N, D], D >= 1")
    bad = np.argwhere(~np.isfinite(matrix))
    if len(bad):
        row, column = bad[0].tolist()
        raise ValueError(
            f"{name} holds {matrix[row, column]} at [{row}, {column}], the first of "
            f"{len(bad)} such values; wanted finite numbers"
        )
    return matrix
