"""Settings of learners."""

import dataclasses
from typing import Any, ClassVar, Literal, TypeAlias

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, base, estimators, learners, optimizers, rl, training
from jaxmeta.recipes._settings import Settings, settings


class Learner(Settings):
    """Interface that the settings of all learners share."""

    embeds: ClassVar[bool] = False  # takes a model without a head
    inner_steps = None  # a field, where there are some
    test_inner_steps = None
    updates_per_step = 1  # of the outer optimizer, as schedules count
    own_loss: ClassVar[bool] = False

    def make(self, model: base.ModelLike, loss: base.LossFn) -> base.MetaLearner:
        """Builds the learner."""
        losses = {} if self.own_loss else {"loss": loss}
        return self.build(model, **losses, **self.inner())

    def inner(self) -> dict[str, Any]:
        """Arguments of the factory beside its options."""
        return {}

    def with_inner_steps(self, inner_steps: int | None) -> "Learner":
        """Replaces the inner steps, if there are any; None changes nothing."""
        if inner_steps is None or self.inner_steps is None:
            return self
        return dataclasses.replace(self, inner_steps=inner_steps)

    def probabilities(self, outputs: jax.Array) -> jax.Array:
        """Class probabilities [N, W] of the learner's predictions."""
        return jax.nn.softmax(outputs)

    def train_step(
        self,
        learner: base.MetaLearner,
        sample_task: base.SampleTask,
        outer_tx: optax.GradientTransformation,
        **over: Any,
    ) -> base.TrainStep:
        """Builds the meta-step over a batch of tasks."""
        estimator = estimators.over_tasks(learner, sample_task, **over)
        return training.make_train_step(estimator, outer_tx)


# With an inner loop.


@settings()
class _Steps(Learner):
    inner_steps: int = 1
    """Inner steps in training."""
    test_inner_steps: int = 10
    """Inner steps in validation and test; results after each are reported."""

    def inner(self):
        return {"inner_steps": self.inner_steps}


@settings()
class _InnerLoop(_Steps):
    inner_learning_rate: float = 0.01
    """Learning rate of an inner step."""
    inner_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    """Optimizer of the inner steps."""

    def inner(self):
        _checks.check_positive("inner_learning_rate", self.inner_learning_rate)
        make = {
            "sgd": optax.sgd,
            "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
            "adam": optimizers.adam,
        }[self.inner_optimizer]
        inner_tx = make(self.inner_learning_rate)
        return {"inner_tx": inner_tx, "inner_steps": self.inner_steps}


@settings(learners.maml, "first_order")
class MamlLearner(_InnerLoop):
    """Model-agnostic meta-learning."""


@settings(learners.anil)
class AnilLearner(_InnerLoop):
    """MAML whose inner loop moves the head alone."""


@settings(learners.boil)
class BoilLearner(_InnerLoop):
    """MAML whose inner loop moves all but the head."""


@settings(
    learners.reptile,
    batch_size=10,
    keep_inner_state=True,
    inner_steps=5,
    test_inner_steps=50,
)
class ReptileLearner(_Steps):
    """Reptile, with Adam inside as in the paper."""

    inner_learning_rate: float = 1e-3
    """Learning rate of the inner Adam, which has no momentum."""

    def inner(self):
        _checks.check_positive("inner_learning_rate", self.inner_learning_rate)
        inner_tx = optax.adam(self.inner_learning_rate, b1=0.0)
        return {"inner_tx": inner_tx, "inner_steps": self.inner_steps}

    def train_step(self, learner, sample_task, outer_tx, **over):
        """The kept state is the mean over the tasks."""
        if self.keep_inner_state:
            outer_tx = learners.reptile_outer_tx(outer_tx)
        return super().train_step(learner, sample_task, outer_tx, **over)


@settings(learners.meta_sgd, test_inner_steps=1)
class MetaSgdLearner(_Steps):
    """MAML with a learned rate for every parameter."""

    low: float = 0.005
    """Lowest initial rate."""
    high: float = 0.1
    """Highest initial rate."""

    def inner(self):
        return super().inner() | {"learning_rate": (self.low, self.high)}


@settings(
    learners.maml_plus_plus,
    "learning_rate",
    "multi_step_until",
    "first_order_until",
    inner_steps=5,
    test_inner_steps=5,
)
class MamlPlusPlusLearner(_Steps):
    """MAML++."""


@settings(learners.cavia, "context", num_context=5)
class CaviaLearner(_InnerLoop):
    """Adaptation by context parameters alone."""


@settings(learners.imaml, "regularization", "damping", "cg_steps")
class ImamlLearner(_InnerLoop):
    """Implicit MAML."""


@settings(learners.meta_curvature, test_inner_steps=3)
class MetaCurvatureLearner(_Steps):
    """MAML along learned transformations of the gradient."""

    inner_learning_rate: float = 0.1
    """Learning rate of an inner step."""

    def inner(self):
        return super().inner() | {"learning_rate": self.inner_learning_rate}


@settings(learners.meta_lstm, "hidden_size", inner_steps=5, test_inner_steps=5)
class MetaLstmLearner(_Steps):
    """The meta-learner LSTM."""


@settings(learners.proto_maml, "first_order")
class ProtoMamlLearner(_InnerLoop):
    """MAML whose head starts from the prototypes."""

    embeds: ClassVar[bool] = True


# On embeddings.


class _Metric(Learner):
    embeds: ClassVar[bool] = True


@settings(learners.prototypical, "distance")
class PrototypicalLearner(_Metric):
    """Prototypical network."""


@settings(learners.matching, "similarity", "full_context")
class MatchingLearner(_Metric):
    """Matching network."""


@settings(learners.siamese)
class SiameseLearner(_Metric):
    """Siamese network, trained by verification."""

    own_loss: ClassVar[bool] = True


@settings(learners.relation)
class RelationLearner(_Metric):
    """Relation network, trained by the squared error of its relations."""

    own_loss: ClassVar[bool] = True

    def probabilities(self, outputs):
        """Relations are between 0 and 1 each."""
        return outputs / jnp.maximum(jnp.sum(outputs, -1, keepdims=True), 1e-12)


@settings(learners.ridge)
class RidgeLearner(_Metric):
    """Ridge regression on embeddings: R2-D2."""


@settings(learners.svm)
class SvmLearner(_Metric):
    """A support vector machine on embeddings: MetaOptNet."""


@settings(learners.subspace, flip=True)
class SubspaceLearner(_Metric):
    """Adaptive subspaces: DSN."""


@settings(learners.feat, "temperature")
class FeatLearner(_Metric):
    """Prototypes that a transformer adapts to each other: FEAT."""


# Of policies.


@settings(
    rl.maml,
    "num_episodes",
    "sampling_term",
    "first_order",
    "discount",
    "gae_lambda",
    surrogate="low-variance",
    test_episodes=40,
    test_inner_steps=4,
)
class PolicyMamlLearner(_Steps):
    """MAML of a policy."""

    inner_learning_rate: float = 0.5
    """Learning rate of the first inner step."""
    later_learning_rate: float = 0.25
    """Learning rate of the inner steps after it."""
    std: float = 1.0
    """Initial standard deviation of the actions."""
    outer: Literal["ppo", "trpo", "gradient"] = "ppo"
    """The outer update: clipped epochs, a trust region, or one gradient step."""
    num_epochs: int = 5
    """PPO: epochs on the same episodes."""
    clip_ratio: float = 0.3
    """PPO: where the ratio is clipped."""
    kl_penalty: float = 5e-4
    """PPO: weight of the divergence before adaptation."""
    max_kl: float = 0.01
    """TRPO: size of the trust region."""

    def make_policy(self, model: base.ModelLike, env: rl.Environment) -> Any:
        """Builds the learner."""
        for name in ("inner_learning_rate", "later_learning_rate"):
            _checks.check_positive(name, getattr(self, name))
        first, later = self.inner_learning_rate, self.later_learning_rate
        rate = lambda count: jnp.where(count == 0, first, later)
        policy = rl.gaussian_policy(model, std=self.std)
        return self.build(env, policy, inner_tx=optax.sgd(rate), **self.inner())

    @property
    def updates_per_step(self) -> int:
        """Updates per meta-step, as the outer schedule counts them."""
        return self.num_epochs if self.outer == "ppo" else 1

    def train_step(self, learner: Any, sample_task, outer_tx, **over):
        """The outer update chosen."""
        if self.outer == "trpo":
            return rl.trpo(learner, sample_task, max_kl=self.max_kl, **over)
        if self.outer == "ppo":
            over |= {"num_epochs": self.num_epochs, "kl_penalty": self.kl_penalty}
            clip = self.clip_ratio
            return rl.ppo(learner, sample_task, outer_tx=outer_tx, clip=clip, **over)
        return super().train_step(learner, sample_task, outer_tx, **over)


AnyLearner: TypeAlias = (
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
    | PrototypicalLearner
    | MatchingLearner
    | SiameseLearner
    | RelationLearner
    | RidgeLearner
    | SvmLearner
    | SubspaceLearner
    | FeatLearner
    | PolicyMamlLearner
)
