"""Settings of recipes for learned optimizers: dataclasses that build their parts."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
from jax.sharding import Mesh

from jaxmeta import base, estimators, models, optimizers, problems, tasks


class ProblemSplits(NamedTuple):
    """Problems for meta-training (and validation), and for the test."""

    train: base.OptimizationProblem
    test: base.OptimizationProblem


@dataclasses.dataclass(frozen=True)
class QuadraticProblem:
    """Random quadratics."""

    dim: int = 10
    """Parameters."""
    distribution: Literal["uniform", "gaussian"] = "uniform"
    """Distribution of W and y: uniform (the paper's figure) or Gaussian (its text)."""

    def splits(self) -> ProblemSplits:
        """Builds the problems; train and test differ in their keys."""
        problem = problems.quadratics(self.dim, distribution=self.distribution)
        return ProblemSplits(problem, problem)


@dataclasses.dataclass(frozen=True)
class MnistProblem:
    """Training small perceptrons on MNIST."""

    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; its own default when left out."""
    units: int = 20
    """Of a hidden layer."""
    layers: int = 1
    """Hidden layers."""
    activation: Literal["sigmoid", "relu", "tanh"] = "sigmoid"
    """After each hidden layer."""
    batch_size: int = 128
    """Images a step."""

    def splits(self) -> ProblemSplits:
        """Loads the images: one half of the training set to meta-train, one to test."""
        images, labels = tasks.load_mnist(self.data_dir).train
        model = models.MLP(
            [*[self.units] * self.layers, 10],
            activation=getattr(jax.nn, self.activation),
        )

        def problem(half):
            return problems.classification(
                images[half::2],
                labels[half::2],
                model,
                batch_size=self.batch_size,
                init_scale=0.01,
            )

        return ProblemSplits(problem(0), problem(1))


@dataclasses.dataclass(frozen=True)
class Cifar10Problem:
    """Training a small convolutional network on CIFAR-10, or on some of its classes."""

    data_dir: pathlib.Path | None = None
    """Where tensorflow-datasets keeps its data; its own default when left out."""
    classes: tuple[int, ...] = tuple(range(10))
    """Those to tell apart."""
    batch_size: int = 128
    """Images a step."""

    def splits(self) -> ProblemSplits:
        """Loads the images: one half of the training set to meta-train, one to test."""
        data = tasks.load_cifar10(self.data_dir).train.take_classes(self.classes)
        model = models.ConvNet(len(self.classes))

        def problem(half):
            return problems.classification(
                data.images[half::2],
                data.labels[half::2],
                model,
                batch_size=self.batch_size,
            )

        return ProblemSplits(problem(0), problem(1))


Problem: TypeAlias = QuadraticProblem | MnistProblem | Cifar10Problem


@dataclasses.dataclass(frozen=True)
class _Lstm:
    """What LSTMs have, one or several."""

    hidden_size: int = 20
    """Units of a layer."""
    num_layers: int = 2
    """Layers."""
    p: float = 10.0
    """Of the gradient's logarithm: gradients under exp(-p) count as small."""
    output_scale: float = 0.1
    """Of the update."""
    init_scale: float = 0.1
    """Of the weights that read the network out, at first."""


@dataclasses.dataclass(frozen=True)
class LstmOptimizer(_Lstm):
    """The coordinatewise LSTM, with averaging cells or without."""

    num_averaged: int = 0
    """Global averaging cells of each layer."""
    preprocess: Literal["log", "scale"] = "log"
    """What it sees of a gradient: logarithm and sign, or the gradient times --scale."""
    scale: float = 1.0
    """Of the gradient."""

    def make(self) -> base.LearnedOptimizer:
        """Builds the optimizer."""
        log, scale = optimizers.log_gradient, optimizers.scaled_gradient
        settings = {
            "preprocess": log(self.p)
            if self.preprocess == "log"
            else scale(self.scale),
            "output_scale": self.output_scale,
            "init_scale": self.init_scale,
        }
        sizes = self.hidden_size, self.num_layers
        if not self.num_averaged:
            return optimizers.lstm(*sizes, **settings)
        return optimizers.lstm_gac(*sizes, num_averaged=self.num_averaged, **settings)


@dataclasses.dataclass(frozen=True)
class NtmBfgsOptimizer:
    """The LSTM with an external memory."""

    hidden_size: int = 20
    """Units of a layer."""
    num_layers: int = 2
    """Layers."""
    num_averaged: int = 2
    """Global averaging cells of each layer."""
    num_reads: int = 1
    """Read heads."""
    num_writes: int = 3
    """Write heads."""
    window: int | None = None
    """Steps that the memory goes back; the whole matrix when left out."""
    scale: float = 1.0
    """Of the gradient and of what is read, as the network sees them."""
    output_scale: float = 1.0
    """Of the update."""

    def make(self) -> base.LearnedOptimizer:
        """Builds the optimizer."""
        return optimizers.ntm_bfgs(
            self.hidden_size,
            self.num_layers,
            num_reads=self.num_reads,
            num_writes=self.num_writes,
            num_averaged=self.num_averaged,
            window=self.window,
            preprocess=optimizers.scaled_gradient(self.scale),
            output_scale=self.output_scale,
        )


@dataclasses.dataclass(frozen=True)
class RnnpropOptimizer:
    """The LSTM over normalised gradients."""

    hidden_size: int = 20
    """Units of a layer."""
    num_layers: int = 2
    """Layers."""
    output_scale: float = 0.1
    """The largest update."""

    def make(self) -> base.LearnedOptimizer:
        """Builds the optimizer."""
        return optimizers.rnnprop(
            self.hidden_size, self.num_layers, output_scale=self.output_scale
        )


@dataclasses.dataclass(frozen=True)
class ConvFcLstmOptimizer(_Lstm):
    """Two LSTMs: one for convolutions' kernels, one for all other parameters."""

    def make(self) -> base.LearnedOptimizer:
        """Builds the optimizer."""
        lopt = LstmOptimizer(**dataclasses.asdict(self)).make()
        is_kernel = lambda p: "conv" if p.ndim == 4 else "fc"
        label = lambda params: jax.tree.map(is_kernel, params)
        return optimizers.partition({"conv": lopt, "fc": lopt}, label)


Optimizer: TypeAlias = (
    LstmOptimizer | ConvFcLstmOptimizer | NtmBfgsOptimizer | RnnpropOptimizer
)


Curriculum: TypeAlias = Callable[[jax.Array], jax.Array]  # of the meta-step


@dataclasses.dataclass(frozen=True)
class _Stretches:
    """Runs that each meta-step advances by one truncation."""

    unroll: int = 20
    """Updates a meta-step."""
    horizon: int = 100
    """Updates a run."""
    num_problems: int = 16
    """Runs side by side; pairs of them where they are perturbed."""

    def _options(self, mesh: Mesh, curriculum: Curriculum | None) -> dict[str, Any]:
        return {
            "unroll": self.unroll,
            "horizon": self.horizon if curriculum is None else curriculum,
            "num_problems": self.num_problems,
            "mesh": mesh,
        }


@dataclasses.dataclass(frozen=True)
class TruncatedBptt(_Stretches):
    """Truncated back-propagation through runs."""

    second_order: bool = True
    """Differentiate the gradients that the optimizer sees."""

    def make(
        self,
        lopt: base.LearnedOptimizer,
        problem: base.OptimizationProblem,
        mesh: Mesh,
        curriculum: Curriculum | None = None,
    ) -> base.GradientEstimator:
        """Builds the estimator."""
        options = self._options(mesh, curriculum)
        return estimators.truncated_bptt(
            lopt, problem, second_order=self.second_order, **options
        )


@dataclasses.dataclass(frozen=True)
class Pes(_Stretches):
    """Persistent evolution strategies."""

    sigma: float = 0.01
    """Standard deviation of the noise."""
    noise: Literal["persistent", "shared", "fresh"] = "persistent"
    """Which perturbations."""

    def make(
        self,
        lopt: base.LearnedOptimizer,
        problem: base.OptimizationProblem,
        mesh: Mesh,
        curriculum: Curriculum | None = None,
    ) -> base.GradientEstimator:
        """Builds the estimator."""
        options = self._options(mesh, curriculum)
        return estimators.pes(
            lopt,
            problem,
            sigma=self.sigma,
            noise=self.noise,
            staggered=True,
            **options,
        )


Estimator: TypeAlias = TruncatedBptt | Pes
