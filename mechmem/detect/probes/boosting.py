"""Gradient-boosted trees as flat arrays of nodes, one ensemble for each bucket of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.utils.class_weight import compute_sample_weight
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.detect.probes.stored_arrays import check_finite, shaped

LEARNING_RATE, SUBSAMPLE, SMALLEST_LEAF = 0.1, 0.7, 5
# Of a stored tree.
MOST_NODES = 4096


@dataclass(frozen=True)
class TreeProbes:
    """Fitted trees of every bucket. A leaf is a node whose children are itself.

    Attributes:
        feature: that a node asks about, [bucket, tree, node].
        cut: values of at most this go left; exact in float32.
        left: child, by its place among the nodes.
        right: child.
        value: log odds that a leaf adds, the learning rate in it.
        start: log odds before any tree, [bucket].
        depth: questions from the root to the furthest leaf.
    """

    feature: Int[Tensor, "bucket tree node"]
    cut: Float[Tensor, "bucket tree node"]
    left: Int[Tensor, "bucket tree node"]
    right: Int[Tensor, "bucket tree node"]
    value: Float[Tensor, "bucket tree node"]
    start: Float[Tensor, " bucket"]
    depth: int

    def log_odds(self, features: Float[Tensor, "row feature"], bucket: int) -> Float[Tensor, " row"]:
        """Not calibrated; all trees of all rows go down together, one level a step."""
        feature, cut, left, right = (each[bucket] for each in (self.feature, self.cut, self.left, self.right))
        trees = torch.arange(len(feature), device=features.device)
        node = torch.zeros(len(features), len(feature), dtype=torch.int64, device=features.device)
        for _ in range(self.depth):
            goes_left = features.gather(1, feature[trees, node]) <= cut[trees, node]
            node = torch.where(goes_left, left[trees, node], right[trees, node])
        return self.start[bucket] + self.value[bucket][trees, node].sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """What is stored, by name."""
        return {name: getattr(self, name) for name in ("feature", "cut", "left", "right", "value", "start")}

    def to(self, device: torch.device | str) -> TreeProbes:
        """The same there."""
        return TreeProbes(**{name: tensor.to(device) for name, tensor in self.tensors().items()}, depth=self.depth)

    @staticmethod
    def stored(tensors: Mapping[str, Tensor], buckets: int, features: int) -> TreeProbes:
        """From what `tensors` gave and a file kept.

        Raises:
            InputError: a tensor is missing, of another shape, not finite, or names a node or feature that is not there.
        """
        shape = tuple(shaped(tensors, "feature", torch.int64, (buckets, None, None)).shape)
        whole = {name: shaped(tensors, name, torch.int64, shape) for name in ("feature", "left", "right")}
        real = {name: shaped(tensors, name, torch.float32, shape) for name in ("cut", "value")}
        real["start"] = shaped(tensors, "start", torch.float32, (buckets,))
        check_finite(real)
        if not 0 < shape[2] <= MOST_NODES:
            raise InputError(f"'feature' has trees of {shape[2]:,} nodes; need 1 to {MOST_NODES:,}")
        for name, below in (("feature", features), ("left", shape[2]), ("right", shape[2])):
            if not bool(((whole[name] >= 0) & (whole[name] < below)).all()):
                raise InputError(f"'{name}' holds numbers beyond 0..{below - 1}")
        depth = _depth(whole["left"], whole["right"])
        if depth == shape[2]:
            raise InputError("'left' and 'right' lead in a circle; need trees")
        return TreeProbes(**whole, **real, depth=depth)

    @staticmethod
    def stack(fits: list[TreeFit]) -> TreeProbes:
        """Those of all buckets, padded to the largest tree with nodes that none reaches."""
        trees, nodes = len(fits[0].trees), max(len(tree.left) for fit in fits for tree in fit.trees)
        whole = np.zeros((3, len(fits), trees, nodes), dtype=np.int64)
        whole[1:] = np.arange(nodes)
        real = np.zeros((2, len(fits), trees, nodes), dtype=np.float32)
        for b, fit in enumerate(fits):
            for t, tree in enumerate(fit.trees):
                whole[:, b, t, : len(tree.left)] = tree.feature, tree.left, tree.right
                real[:, b, t, : len(tree.left)] = tree.cut, tree.value
        feature, left, right = torch.from_numpy(whole)
        cut, value = torch.from_numpy(real)
        start = torch.tensor([fit.start for fit in fits], dtype=torch.float32)
        return TreeProbes(feature, cut, left, right, value, start, _depth(left, right))


@dataclass(frozen=True)
class Tree:
    """One tree: as `TreeProbes` without buckets, [node]."""

    feature: Int[np.ndarray, " node"]
    cut: Float[np.ndarray, " node"]
    left: Int[np.ndarray, " node"]
    right: Int[np.ndarray, " node"]
    value: Float[np.ndarray, " node"]


@dataclass(frozen=True)
class TreeFit:
    """One ensemble."""

    trees: list[Tree]
    start: float

    def log_odds(self, features: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, " row"]:
        """Not calibrated."""
        rows = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
        return TreeProbes.stack([self]).log_odds(rows, 0).numpy().astype(np.float64)


def fit_boosting(
    features: Float[np.ndarray, "row feature"], recites: Bool[np.ndarray, " row"], trees: int, depth: int, seed: int
) -> TreeFit:
    """Fit by scikit-learn's GradientBoostingClassifier, with both classes weighted alike; the trees are copied."""
    model = GradientBoostingClassifier(
        n_estimators=trees,
        max_depth=depth,
        learning_rate=LEARNING_RATE,
        subsample=SUBSAMPLE,
        min_samples_leaf=SMALLEST_LEAF,
        # Of many features a few random ones are tried at each node, as in a random forest.
        max_features=None if features.shape[1] <= 32 else "sqrt",
        random_state=seed,
    )
    model.fit(features.astype(np.float32), recites, sample_weight=compute_sample_weight("balanced", recites))
    return copied_trees(model)


def copied_trees(model: GradientBoostingClassifier) -> TreeFit:
    """The trees of a fitted classifier of two classes, without scikit-learn's objects."""
    trees = [_copied(estimator.tree_, model.learning_rate) for estimator in model.estimators_[:, 0]]
    share = float(model.init_.class_prior_[1])  # pyright: ignore[reportAttributeAccessIssue]
    return TreeFit(trees, float(np.log(share / (1 - share))))


def _copied(tree: object, rate: float) -> Tree:
    names = ("feature", "threshold", "children_left", "children_right", "value")
    feature, threshold, left, right, value = (np.array(getattr(tree, name)) for name in names)
    here, leaf = np.arange(len(feature)), left < 0
    return Tree(
        np.where(leaf, 0, feature).astype(np.int64),
        np.where(leaf, 0, _rounded_down(threshold)).astype(np.float32),
        np.where(leaf, here, left).astype(np.int64),
        np.where(leaf, here, right).astype(np.int64),
        (rate * value[:, 0, 0]).astype(np.float32),
    )


def _rounded_down(cuts: Float[np.ndarray, " node"]) -> Float[np.ndarray, " node"]:
    """The largest float32 that is not above each: a float32 is at most the cut exactly if it is at most this."""
    near = cuts.astype(np.float32)
    return np.where(near.astype(np.float64) > cuts, np.nextafter(near, np.float32(-np.inf)), near)


def _depth(left: Int[Tensor, "bucket tree node"], right: Int[Tensor, "bucket tree node"]) -> int:
    """Steps after which every walk from a root is at a leaf; the number of nodes where some walk is in a circle."""
    nodes = left.shape[2]
    here = torch.arange(nodes).expand_as(left)
    reached = torch.zeros_like(left, dtype=torch.bool)
    reached[..., 0] = True
    for depth in range(nodes):
        inner = reached & ((left != here) | (right != here))
        if not bool(inner.any()):
            return depth
        children = torch.zeros_like(reached)
        for child in (left, right):
            children |= torch.zeros_like(reached).scatter_reduce(2, child, inner, "amax", include_self=True)
        reached = children
    return nodes
