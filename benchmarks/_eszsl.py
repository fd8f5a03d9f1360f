"""ESZSL: zero-shot learning in closed form, to hold meta-learned models against.

Romera-Paredes and Torr, "An embarrassingly simple approach to zero-shot learning", ICML
2015. Letters: N examples, D features, A attributes, S seen classes, U unseen ones.
"""

import itertools
from typing import NamedTuple

import numpy as np

STRENGTHS = tuple(10.0**k for k in range(-3, 4))


# What Y holds for the classes that an example is not of. The paper has -1, which adds a
# product of sums of features and of attributes: without a bias it can drown the rest.
OTHERS = (-1.0, 0.0)


class Chosen(NamedTuple):
    """What validation chose, and how well it did there."""

    gamma: float
    lam: float
    other: float
    validation: float


class Moments(NamedTuple):
    """All that the closed form needs to know of the data."""

    features: np.ndarray  # [D, D] X X^T
    attributes: np.ndarray  # [A, A] S S^T
    own: np.ndarray  # [D, A] each example times its own class's attributes
    every: np.ndarray  # [D, A] each example times the sum of all attributes


def moments(features, labels, attributes):
    """Of features [N, D], labels [N] int and attributes [S, A], their rows."""
    return Moments(
        features=features.T @ features,
        attributes=attributes.T @ attributes,
        own=features.T @ attributes[labels],
        every=np.outer(features.sum(0), attributes.sum(0)),
    )


def fit(data, *, gamma, lam, other=-1.0):
    """Returns V [D, A] = (X X^T + gamma I)^-1 X Y S^T (S S^T + lambda I)^-1.

    Args:
      data: from `moments`.
      gamma: penalty on V S.
      lam: penalty on X^T V; their product is that on V.
      other: target of the classes that an example is not of; its own has 1.
    """
    left = data.features + gamma * np.eye(len(data.features))
    right = data.attributes + lam * np.eye(len(data.attributes))
    middle = (1 - other) * data.own + other * data.every
    return np.linalg.solve(right, np.linalg.solve(left, middle).T).T


def accuracy(weights, features, labels, attributes):
    """Mean over classes of the share of examples whose best class is their own."""
    hits = (features @ weights @ attributes.T).argmax(1) == labels
    return np.mean([hits[labels == c].mean() for c in np.unique(labels)])


def choose(features, labels, attributes, *, validation=0.25):
    """Chooses the penalties by the last classes, left out; then fits on all.

    Args:
      features: [N, D] of seen classes.
      labels: [N] int, rows of `attributes`.
      attributes: [S, A].
      validation: share of the classes to choose by.

    Returns:
      `(weights [D, A], Chosen)`.
    """
    split = round(len(attributes) * (1 - validation))
    is_train = labels < split
    train = moments(features[is_train], labels[is_train], attributes[:split])
    held = features[~is_train], labels[~is_train] - split, attributes[split:]
    tried = []
    for gamma, lam, other in itertools.product(STRENGTHS, STRENGTHS, OTHERS):
        weights = fit(train, gamma=gamma, lam=lam, other=other)
        tried.append(Chosen(gamma, lam, other, accuracy(weights, *held)))
    best = max(tried, key=lambda chosen: chosen.validation)
    options = {"gamma": best.gamma, "lam": best.lam, "other": best.other}
    return fit(moments(features, labels, attributes), **options), best
