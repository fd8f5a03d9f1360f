"""Families of optimization problems, each an `OptimizationProblem`."""

from jaxmeta.problems._classification import classification
from jaxmeta.problems._neural_art import NeuralArt, neural_art
from jaxmeta.problems._quadratics import quadratics
from jaxmeta.problems._scaling import random_scaling
from jaxmeta.problems._supervised import (
    larger_networks,
    small_networks,
    supervised,
)
from jaxmeta.problems._synthetic import (
    language_model,
    softmax_regression,
)

__all__ = [
    "NeuralArt",
    "classification",
    "language_model",
    "larger_networks",
    "neural_art",
    "quadratics",
    "random_scaling",
    "small_networks",
    "softmax_regression",
    "supervised",
]
