"""Clusters of the columns that several runs found, one column of each run in every cluster."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["assignment", "clusters", "silhouettes"]

Floats = NDArray[np.float64]


def assignment(cost: Floats) -> NDArray[np.int64]:
    """Column of each row in the cheapest perfect matching of a square matrix.

    Shortest augmenting paths with potentials (R. Jonker, A. Volgenant, Computing 38, 1987): n^3.
    """
    n = len(cost)
    of_row, of_column = np.zeros(n), np.zeros(n)
    row_of = np.full(n, -1)
    for free in range(n):
        distance = np.full(n, np.inf)
        before = np.full(n, -1)
        done = np.zeros(n, bool)
        row, column = free, -1
        while True:
            if column >= 0:
                done[column] = True
                row = int(row_of[column])
            reach = (0.0 if column < 0 else distance[column]) + (
                cost[row] - of_row[row] - of_column
            )
            better = ~done & (reach < distance)
            distance[better], before[better] = reach[better], column
            open_ = np.where(done, np.inf, distance)
            column = int(np.argmin(open_))
            if row_of[column] < 0:
                break
        ends = distance[column]
        for j in np.flatnonzero(done):
            of_row[row_of[j]] += ends - distance[j]
            of_column[j] -= ends - distance[j]
        of_row[free] += ends
        while column >= 0:
            previous = int(before[column])
            row_of[column] = free if previous < 0 else row_of[previous]
            column = previous
    out = np.empty(n, np.int64)
    out[row_of] = np.arange(n)
    return out


def clusters(columns: Floats, rounds: int = 100) -> tuple[NDArray[np.int64], Floats]:
    """Orders (runs, k) that match unit columns (runs, n, k), and the medians (n, k) of the matched.

    Matched to centroids by inner product; centroids are medians, scaled to length 1.
    """
    runs, _, k = columns.shape
    orders = np.tile(np.arange(k), (runs, 1))
    centre = columns[0]
    for _ in range(rounds):
        found = np.stack([np.argsort(assignment(-(c.T @ centre))) for c in columns])
        matched = np.take_along_axis(columns, found[:, None, :], axis=2)
        centre = np.median(matched, axis=0)
        sizes = np.linalg.norm(centre, axis=0)
        centre = np.where(sizes > 0, centre / np.where(sizes > 0, sizes, 1), matched[0])
        if (found == orders).all():
            break
        orders = found
    return found, centre


def silhouettes(columns: Floats) -> Floats:
    """Mean silhouette of each cluster, of matched unit columns (runs, n, k), by angles.

    One cluster has silhouette 1; so have all for a single run.
    """
    runs, n, k = columns.shape
    if k == 1 or runs == 1:
        return np.ones(k)
    flat = columns.transpose(1, 0, 2).reshape(n, runs * k)
    angle = np.arccos(np.clip(flat.T @ flat, -1, 1)).reshape(runs, k, runs, k)
    total = angle.sum(axis=2)  # (runs, k, k): to all columns of each cluster
    own = total[:, np.arange(k), np.arange(k)] / (runs - 1)
    other = total / runs
    other[:, np.arange(k), np.arange(k)] = np.inf
    nearest = other.min(axis=2)
    most = np.maximum(own, nearest)
    value = np.divide(nearest - own, most, out=np.zeros_like(own), where=most > 0)
    result: Floats = value.mean(axis=0)
    return result
