"""Settings of recipes for learned optimizers: dataclasses that build their parts."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmeta import _images, base, estimators, models, optimizers, problems, tasks
from jaxmeta.recipes._settings import Settings, settings

# One family, or several by name.
Problems: TypeAlias = base.OptimizationProblem | Mapping[str, base.OptimizationProblem]


class ProblemSplits(NamedTuple):
    """Problems for meta-training, validation and the test."""

    train: Problems
    validation: Problems
    test: Problems


@settings(problems.quadratics, "dim", "distribution")
class QuadraticProblem(Settings):
    """Random quadratics."""

    def splits(self) -> ProblemSplits:
        """Builds the problems; train and test differ in their keys."""
        problem = self.build()
        return ProblemSplits(problem, problem, problem)


@settings()
class MnistProblem(Settings):
    """Training small perceptrons on MNIST."""

    data_dir: pathlib.Path | None = None
    """Data directory of tensorflow-datasets; None is its own default."""
    units: int = 20
    """Units per hidden layer."""
    layers: int = 1
    """Number of hidden layers."""
    activation: Literal["sigmoid", "relu", "tanh"] = "sigmoid"
    """Activation after each hidden layer."""
    batch_size: int = 128
    """Images per step."""

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

        train, test = problem(0), problem(1)
        return ProblemSplits(train, train, test)


@settings()
class Cifar10Problem(Settings):
    """Training a small convolutional network on CIFAR-10, or on some of its classes."""

    data_dir: pathlib.Path | None = None
    """Data directory of tensorflow-datasets; None is its own default."""
    classes: tuple[int, ...] = tuple(range(10))
    """Classes to distinguish."""
    batch_size: int = 128
    """Images per step."""

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

        train, test = problem(0), problem(1)
        return ProblemSplits(train, train, test)


@settings()
class SmallNetworks(Settings):
    """Unlike families of networks, on embedded data; larger ones to validate."""

    def splits(self) -> ProblemSplits:
        """Builds the problems; validation and test differ in their keys."""
        larger = problems.larger_networks()
        return ProblemSplits(problems.small_networks(), larger, larger)


@settings(problems.neural_art, "content_weight", "style_weight", "variation_weight")
class NeuralArtProblem(Settings):
    """Images with the content of one picture in the style of another."""

    weights: pathlib.Path | None = None
    """Weights of VGG-16, as `models.vgg16_features` reads them; required."""
    pictures: pathlib.Path | None = None
    """Folder with pictures in contents/ and styles/, at least two each; required."""
    size: int = 64
    """Pixels a side in meta-training; twice as many in the test."""

    def splits(self) -> ProblemSplits:
        """Reads the pictures.

        Of the contents, the last fifth is for the test; of the styles, the first is for
        meta-training and the last for the test.
        """
        if self.weights is None or self.pictures is None:
            name = "weights" if self.weights is None else "pictures"
            raise ValueError(
                f"`{name}` must be given, got None: neural art has no data of its own. "
                f"On the command line: --{name} PATH."
            )
        features = models.vgg16_features(
            self.weights, ("conv1_2", "conv2_2", "conv3_3")
        )
        folders = [self.pictures / name for name in ("contents", "styles")]
        contents, styles = (
            _images.image_paths(folder) if folder.is_dir() else [] for folder in folders
        )
        if min(len(contents), len(styles)) < 2:
            raise ValueError(
                f"`pictures` must have two or more in contents/ and in styles/, got "
                f"{len(contents)} and {len(styles)} in {self.pictures}."
            )
        held_out = max(1, len(contents) // 5)

        def problem(contents, styles, size):
            load = lambda path: tasks.load_image(path, size=size, channels=3)
            stacks = [np.stack([*map(load, paths)]) for paths in (contents, styles)]
            return self.build(features, *stacks)

        train = problem(contents[:-held_out], styles[:1], self.size)
        test = problem(contents[-held_out:], styles[-1:], 2 * self.size)
        return ProblemSplits(train, train, test)


Problem: TypeAlias = (
    QuadraticProblem | MnistProblem | Cifar10Problem | SmallNetworks | NeuralArtProblem
)


@settings(optimizers.lstm, "hidden_size", "num_layers", "output_scale", "init_scale")
class _Lstm(Settings):
    """Settings that one LSTM and several share."""

    p: float = 10.0
    """Range of the gradient's logarithm: those under exp(-p) count as small."""


@settings()
class LstmOptimizer(_Lstm):
    """The coordinatewise LSTM, with averaging cells or without."""

    num_averaged: int = 0
    """Global averaging cells of each layer."""
    preprocess: Literal["log", "scale"] = "log"
    """Input: the gradient's logarithm and sign, or the gradient times --scale."""
    scale: float = 1.0
    """Factor of the gradient."""

    def make(self) -> base.LearnedOptimizer:
        """Builds the optimizer."""
        sees = {
            "log": optimizers.log_gradient(self.p),
            "scale": optimizers.scaled_gradient(self.scale),
        }
        preprocess = sees[self.preprocess]
        if not self.num_averaged:
            return self.build(preprocess=preprocess)
        averaged = {"num_averaged": self.num_averaged, **self.chosen()}
        return optimizers.lstm_gac(preprocess=preprocess, **averaged)


@settings(
    optimizers.ntm_bfgs,
    "hidden_size",
    "num_layers",
    "num_averaged",
    "num_reads",
    "num_writes",
    "window",
    output_scale=1.0,
)
class NtmBfgsOptimizer(Settings):
    """The LSTM with an external memory."""

    scale: float = 1.0
    """Factor of the gradient and of what is read, as the network sees them."""

    def make(self) -> base.LearnedOptimizer:
        """Builds the optimizer."""
        return self.build(preprocess=optimizers.scaled_gradient(self.scale))


@settings(optimizers.rnnprop, "hidden_size", "num_layers", "output_scale")
class RnnpropOptimizer(Settings):
    """The LSTM over normalised gradients."""

    def make(self) -> base.LearnedOptimizer:
        """Builds the optimizer."""
        return self.build()


@settings()
class ConvFcLstmOptimizer(_Lstm):
    """Two LSTMs: one for convolutions' kernels, one for all other parameters."""

    def make(self) -> base.LearnedOptimizer:
        """Builds the optimizer."""
        lopt = LstmOptimizer(**dataclasses.asdict(self)).make()
        is_kernel = lambda p: "conv" if p.ndim == 4 else "fc"
        label = lambda params: jax.tree.map(is_kernel, params)
        return optimizers.partition({"conv": lopt, "fc": lopt}, label)


@settings(optimizers.learned_adam, "hidden_size")
class LearnedAdamOptimizer(Settings):
    """Adam, scheduled per tensor by a small network."""

    def make(self) -> base.LearnedOptimizer:
        """Builds the optimizer, which the estimators tell how long a run is."""
        return self.build()


Optimizer: TypeAlias = (
    LstmOptimizer
    | ConvFcLstmOptimizer
    | NtmBfgsOptimizer
    | RnnpropOptimizer
    | LearnedAdamOptimizer
)


Curriculum: TypeAlias = Callable[[jax.Array], jax.Array]  # of the meta-step


class _Runs(Settings):
    """Estimators over runs side by side, `num_problems` of them."""

    def lengths(self, curriculum: Curriculum | None) -> dict[str, Any]:
        """The factory's arguments that say how long runs are."""
        raise NotImplementedError

    def make(
        self,
        lopt: base.LearnedOptimizer,
        problem: base.OptimizationProblem,
        mesh: Mesh,
        curriculum: Curriculum | None = None,
    ) -> base.GradientEstimator:
        """Builds the estimator."""
        return self.build(
            lopt,
            problem,
            num_problems=self.num_problems,
            mesh=mesh,
            **self.lengths(curriculum),
        )


@settings()
class _Truncated(_Runs):
    """Runs that each meta-step advances by one truncation."""

    unroll: int = 20
    """Updates per meta-step."""
    horizon: int = 100
    """Updates per run."""
    num_problems: int = 16
    """Runs side by side; pairs of them where they are perturbed."""

    def lengths(self, curriculum: Curriculum | None) -> dict[str, Any]:
        """A curriculum takes the place of the horizon."""
        horizon = self.horizon if curriculum is None else curriculum
        return {"unroll": self.unroll, "horizon": horizon}


@settings(estimators.truncated_bptt, "second_order")
class TruncatedBptt(_Truncated):
    """Truncated back-propagation through runs."""


@settings(estimators.pes, "sigma", "noise")
class Pes(_Truncated):
    """Persistent evolution strategies."""

    def build(self, *args: Any, **more: Any) -> Any:
        """Calls the factory; the first runs end one after the other."""
        return super().build(*args, staggered=True, **more)


@settings(estimators.es, "meta_loss", sigma=0.1)
class WholeRuns(_Runs):
    """Evolution strategies over whole runs."""

    shortest: int = 100
    """Updates of the shortest run; lengths are uniform in the logarithm."""
    longest: int = 100
    """Updates of the longest run."""
    num_problems: int = 8
    """Pairs of runs side by side, of each family of problems."""

    def lengths(self, curriculum: Curriculum | None) -> dict[str, Any]:
        """Whole runs have no curriculum."""
        del curriculum
        return {"horizon": (self.shortest, self.longest)}


Estimator: TypeAlias = TruncatedBptt | Pes | WholeRuns
