"""Settings of learners with an inner loop: dataclasses that build their learner."""

import dataclasses
from typing import Any, ClassVar, Literal, TypeAlias

import jax
import optax

from jaxmeta import _checks, base, estimators, learners, optimizers


@dataclasses.dataclass(frozen=True)
class Learner:
    """What the settings of all learners have."""

    embeds: ClassVar[bool] = False  # takes a model without a head
    inner_steps: ClassVar[int | None] = None  # a field, where there are some
    test_inner_steps: ClassVar[int | None] = None
    updates_per_step: ClassVar[int] = 1  # of the outer optimizer, as schedules count

    def make(self, model: base.ModelLike, loss: base.LossFn) -> base.MetaLearner:
        """Builds the learner."""
        raise NotImplementedError

    def with_inner_steps(self, inner_steps: int | None) -> "Learner":
        """The same with other inner steps, if it makes any; None changes nothing."""
        if inner_steps is None or self.inner_steps is None:
            return self
        return dataclasses.replace(self, inner_steps=inner_steps)  # pyright: ignore

    def outer_tx(self, outer_tx: optax.GradientTransformation):
        """The outer update for all the meta-parameters."""
        return outer_tx

    def probabilities(self, outputs: jax.Array) -> jax.Array:
        """Of the classes, [N, W], from what the learner predicts."""
        return jax.nn.softmax(outputs)

    def estimator(
        self,
        learner: base.MetaLearner,
        sample_task: base.SampleTask,
        outer_tx: optax.GradientTransformation,
        **over: Any,
    ) -> base.GradientEstimator:
        """What gives the meta-gradient; `outer_tx` is before `self.outer_tx`."""
        del outer_tx
        return estimators.over_tasks(learner, sample_task, **over)


@dataclasses.dataclass(frozen=True)
class _InnerLoop(Learner):
    inner_learning_rate: float = 0.01
    """Of an inner step."""
    inner_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """What makes an inner step."""
    inner_steps: int = 1  # pyright: ignore
    """Inner steps in training."""
    test_inner_steps: int = 10  # pyright: ignore
    """Inner steps in validation and test; all before it are reported too."""

    def inner(self):
        """What the factories take."""
        _checks.check_positive("inner_learning_rate", self.inner_learning_rate)
        make = {
            "sgd": optax.sgd,
            "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
            "adam": optimizers.adam,
        }[self.inner_optimizer]
        inner_tx = make(self.inner_learning_rate)
        return {"inner_tx": inner_tx, "inner_steps": self.inner_steps}


@dataclasses.dataclass(frozen=True)
class MamlLearner(_InnerLoop):
    """Model-agnostic meta-learning."""

    first_order: bool = False
    """Treat inner gradients as constants: FOMAML."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.maml(model, loss, first_order=self.first_order, **self.inner())


@dataclasses.dataclass(frozen=True)
class AnilLearner(_InnerLoop):
    """MAML whose inner loop moves the head alone."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.anil(model, loss, **self.inner())


@dataclasses.dataclass(frozen=True)
class BoilLearner(_InnerLoop):
    """MAML whose inner loop moves all but the head."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.boil(model, loss, **self.inner())


@dataclasses.dataclass(frozen=True)
class ReptileLearner(Learner):
    """Reptile, with Adam inside as in the paper."""

    inner_learning_rate: float = 1e-3
    """Of the inner Adam, which has no momentum."""
    batch_size: int = 10
    """Support examples of an inner step."""
    inner_steps: int = 5  # pyright: ignore
    """Inner steps in training."""
    test_inner_steps: int = 50  # pyright: ignore
    """Inner steps in validation and test."""
    keep_inner_state: bool = True
    """Carry Adam's state from task to task."""

    def make(self, model, loss):
        """Builds the learner."""
        _checks.check_positive("inner_learning_rate", self.inner_learning_rate)
        return learners.reptile(
            model,
            loss,
            inner_tx=optax.adam(self.inner_learning_rate, b1=0.0),
            inner_steps=self.inner_steps,
            batch_size=self.batch_size,
            keep_inner_state=self.keep_inner_state,
        )

    def outer_tx(self, outer_tx):
        """The kept state is the mean over the tasks."""
        if not self.keep_inner_state:
            return outer_tx
        return learners.reptile_outer_tx(outer_tx)


@dataclasses.dataclass(frozen=True)
class MetaSgdLearner(Learner):
    """MAML with a learned rate for every parameter."""

    low: float = 0.005
    """The least of the rates at first."""
    high: float = 0.1
    """The largest of them."""
    inner_steps: int = 1  # pyright: ignore
    """Inner steps in training."""
    test_inner_steps: int = 1  # pyright: ignore
    """Inner steps in validation and test."""

    def make(self, model, loss):
        """Builds the learner."""
        rates = (self.low, self.high)
        return learners.meta_sgd(
            model, loss, learning_rate=rates, inner_steps=self.inner_steps
        )


@dataclasses.dataclass(frozen=True)
class MamlPlusPlusLearner(Learner):
    """MAML++."""

    learning_rate: float = 0.1
    """What the rates of all layers and steps start from."""
    multi_step_until: int = 0
    """Meta-steps over which the losses of earlier steps fade out."""
    first_order_until: int = 0
    """Meta-steps of first order in the beginning."""
    inner_steps: int = 5  # pyright: ignore
    """Inner steps in training."""
    test_inner_steps: int = 5  # pyright: ignore
    """Inner steps in validation and test."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.maml_plus_plus(
            model,
            loss,
            learning_rate=self.learning_rate,
            inner_steps=self.inner_steps,
            multi_step_until=self.multi_step_until,
            first_order_until=self.first_order_until,
        )


@dataclasses.dataclass(frozen=True)
class CaviaLearner(_InnerLoop):
    """Adaptation by context parameters alone."""

    num_context: int = 5
    """Context parameters."""
    context: Literal["input", "model"] = "input"
    """Beside the inputs, or in a FiLM layer of the model."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.cavia(
            model,
            loss,
            num_context=self.num_context,
            context=self.context,
            **self.inner(),
        )


@dataclasses.dataclass(frozen=True)
class ImamlLearner(_InnerLoop):
    """Implicit MAML."""

    regularization: float = 2.0
    """Of the distance to the initialisation."""
    damping: float = 0.0
    """Of the Hessian."""
    cg_steps: int = 5
    """Conjugate-gradient steps."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.imaml(
            model,
            loss,
            regularization=self.regularization,
            damping=self.damping,
            cg_steps=self.cg_steps,
            **self.inner(),
        )


@dataclasses.dataclass(frozen=True)
class MetaCurvatureLearner(Learner):
    """MAML along learned transformations of the gradient."""

    inner_learning_rate: float = 0.1
    """Of an inner step."""
    inner_steps: int = 1  # pyright: ignore
    """Inner steps in training."""
    test_inner_steps: int = 3  # pyright: ignore
    """Inner steps in validation and test."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.meta_curvature(
            model,
            loss,
            learning_rate=self.inner_learning_rate,
            inner_steps=self.inner_steps,
        )


@dataclasses.dataclass(frozen=True)
class MetaLstmLearner(Learner):
    """The meta-learner LSTM."""

    hidden_size: int = 20
    """Units of the LSTM."""
    inner_steps: int = 5  # pyright: ignore
    """Updates of a task in training."""
    test_inner_steps: int = 5  # pyright: ignore
    """The same in validation and test."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.meta_lstm(
            model, loss, inner_steps=self.inner_steps, hidden_size=self.hidden_size
        )


@dataclasses.dataclass(frozen=True)
class ProtoMamlLearner(_InnerLoop):
    """MAML whose head starts from the prototypes."""

    embeds: ClassVar[bool] = True
    first_order: bool = False
    """Treat inner gradients as constants."""

    def make(self, model, loss):
        """Builds the learner."""
        return learners.proto_maml(
            model, loss=loss, first_order=self.first_order, **self.inner()
        )


InnerLoopLearner: TypeAlias = (
    MamlLearner
    | AnilLearner
    | BoilLearner
    | ReptileLearner
    | MetaSgdLearner
    | MamlPlusPlusLearner
    | CaviaLearner
    | ImamlLearner
    | MetaCurvatureLearner
    | MetaLstmLearner
    | ProtoMamlLearner
)
