"""Core types. Everything else in the package is a function over these.

Dimension letters, used in every docstring and comment:
  T tasks in a batch, N support examples, Q query examples, K inner steps,
  W ways (classes), C classes in a data set, E examples per class, D features,
  `...` any trailing shape.

Keys come first, data are positional, configuration is keyword-only. Learners are
functions of ONE task: `jaxmeta.estimators.over_tasks` adds the task axis, and the
caller applies `jit`.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import jax
import optax
from jax.sharding import Mesh

PyTree: TypeAlias = Any
Params: TypeAlias = PyTree
LossFn: TypeAlias = Callable[[PyTree, PyTree], jax.Array]
MetricFn: TypeAlias = Callable[[PyTree, PyTree], jax.Array]


class Examples(NamedTuple):
    """Labelled examples of one task; `vmap` adds the task axis T in front.

    Attributes:
      inputs: leaves [N, ...].
      targets: leaves [N, ...]; classes are one-hot, [N, W].
    """

    inputs: PyTree
    targets: PyTree


class Task(NamedTuple):
    """One episode: adapt on `support`, evaluate on `query`."""

    support: Examples
    query: Examples


SampleTask: TypeAlias = Callable[[jax.Array], Task]


class ModelLike(Protocol):
    """Anything with `init` and `apply`: a flax.linen Module, `Model`, haiku's pair.

    Haiku's `transform(f)` receives a key in training passes, and `train` if `f` takes
    it; `without_apply_rng(transform(f))` receives no key. Modules of flax.nnx and
    Equinox, and linen modules with dropout or running statistics, need the adapters in
    `jaxmeta.models`.
    """

    @property
    def init(self) -> Callable[..., Params]:
        """`init(key, inputs [N, ...]) -> params`."""
        ...

    @property
    def apply(self) -> Callable[..., PyTree]:
        """`apply(params, inputs [N, ...]) -> outputs [N, ...]`."""
        ...


class Model(NamedTuple):
    """A model as a pair of functions.

    Attributes:
      init: `init(key, inputs [N, ...]) -> params`, the trainable parameters: a pytree
        of floating-point arrays. Python and NumPy numbers become JAX arrays.
      apply: `apply(params, inputs [N, ...]) -> outputs [N, ...]`. If its signature
        names `key` or `train`, learners pass them: a PRNG key, and whether this is a
        training pass (gradients are taken).
      with_support_statistics: `(params, support_inputs) -> params`, or None: adds the
        support set's normalisation statistics to the adapted parameters, for models
        that predict with them.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> model = jm.Model(
      ...     init=lambda key, x: jnp.zeros(x.shape[-1]), apply=lambda w, x: x @ w
      ... )
      >>> print(model.apply(jnp.ones(2), jnp.eye(2)))
      [1. 1.]
    """

    init: Callable[..., Params]  # (key, inputs)
    apply: Callable[..., PyTree]  # with `key` and `train` or without
    with_support_statistics: Callable[[Params, PyTree], Params] | None = None


class Adapted(NamedTuple):
    """Task parameters that `adapt` can resume from when `params` do not suffice.

    Attributes:
      params: the model's parameters, with support statistics if it predicts with them.
      inner_state: the inner rule's state.
      step: [] int32, inner steps so far.
      meta_params: parameters that the next inner step starts from; or, with
        `variables`, the meta-parameters.
      variables: the adapted variables, if the meta-parameters hold more than them.
    """

    params: Params
    inner_state: Any
    step: jax.Array
    meta_params: Params
    variables: Any = None


class Info(Protocol):
    """Meta-gradient diagnostics that estimators and `fit` read."""

    @property
    def loss(self) -> jax.Array:
        """[] for one task or run, [T] for several."""
        ...

    @property
    def metrics(self) -> Mapping[str, jax.Array]:
        """Name -> values of the loss's shape."""
        ...

    @property
    def is_valid(self) -> jax.Array | bool:
        """Whether the gradient enters the mean: the loss's shape, or True for all."""
        ...


class AdaptInfo(NamedTuple):
    """Diagnostics of one adaptation; not needed to resume it.

    Attributes:
      losses: [K], the support loss before each inner step.
    """

    losses: jax.Array


class MetaGradInfo(NamedTuple):
    """Diagnostics of one meta-gradient.

    Attributes:
      loss: [], the query loss after adaptation.
      metrics: name -> [], metrics of the query outputs after adaptation.
      adapt: the info that `adapt` returns.
    """

    loss: jax.Array
    metrics: Mapping[str, jax.Array]
    adapt: PyTree

    @property
    def is_valid(self) -> bool:
        """True: learners exclude no task. A non-finite gradient ends training."""
        return True


class EvalInfo(NamedTuple):
    """Quality on the query set after 0 ... K inner steps.

    Attributes:
      loss: [K + 1].
      metrics: name -> [K + 1].
    """

    loss: jax.Array
    metrics: Mapping[str, jax.Array]


class InitFn(Protocol):
    """Draws initial meta-parameters."""

    def __call__(self, key: jax.Array, task: Task) -> Params:
        """Returns meta-parameters for tasks with the shapes of `task`."""
        ...


class AdaptFn(Protocol):
    """Specialises meta-parameters to one task."""

    def __call__(
        self, key: jax.Array, meta_params: Params, support: Examples
    ) -> tuple[Params, Any]:
        """Returns `(task_params, info)`; never sees the query set.

        Pass task parameters instead of meta-parameters to resume adaptation.
        """
        ...


class PredictFn(Protocol):
    """Applies task parameters."""

    def __call__(self, task_params: Params, inputs: PyTree) -> PyTree:
        """Returns outputs [N, ...] for inputs [N, ...]."""
        ...


class MetaGradFn(Protocol):
    """Estimates the gradient of the loss after adaptation to one task."""

    def __call__(
        self, key: jax.Array, meta_params: Params, task: Task, **extra: Any
    ) -> tuple[Params, Info]:
        """Returns `(meta_grads, info)`, `meta_grads` shaped like `meta_params`.

        `extra` carries `step` for learners that anneal; unknown names are ignored.
        """
        ...


class EvaluateFn(Protocol):
    """Evaluates adaptation to one task, step by step."""

    def __call__(
        self,
        key: jax.Array,
        meta_params: Params,
        task: Task,
        *,
        inner_steps: int | None = None,
    ) -> EvalInfo:
        """Returns query loss and metrics after 0 ... `inner_steps` inner steps."""
        ...


class MetaLearner(NamedTuple):
    """Five pure functions of one task; callers add batching and devices.

    `meta_grad` instead of a loss, because Reptile, implicit MAML and evolution
    strategies do not differentiate one; users call `outer_tx.update(meta_grads, ...)`.

    Attributes:
      init: `(key, task) -> meta_params`.
      adapt: `(key, meta_params, support) -> (task_params, info)`. Given task parameters
        instead of meta-parameters it resumes, e.g. when new examples arrive.
      predict: `(task_params, inputs) -> outputs`.
      meta_grad: `(key, meta_params, task) -> (meta_grads, info)`, ready for any optax
        chain.
      evaluate: `(key, meta_params, task, inner_steps=None) -> EvalInfo`, query loss and
        metrics after each inner step.
      description: its repr, the call that made it.
    """

    init: InitFn
    adapt: AdaptFn
    predict: PredictFn
    meta_grad: MetaGradFn
    evaluate: EvaluateFn
    description: str = ""

    def __repr__(self) -> str:
        """The description, or the factory's name if there is none."""
        name = getattr(self.adapt, "__qualname__", "?").split(".")[0]
        return self.description or f"MetaLearner({name})"


class LearnerLike(Protocol):
    """Anything with at least the five functions of a `MetaLearner`."""

    @property
    def init(self) -> InitFn:
        """See `MetaLearner`."""
        ...

    @property
    def adapt(self) -> AdaptFn:
        """See `MetaLearner`."""
        ...

    @property
    def predict(self) -> PredictFn:
        """See `MetaLearner`."""
        ...

    @property
    def meta_grad(self) -> MetaGradFn:
        """See `MetaLearner`."""
        ...

    @property
    def evaluate(self) -> EvaluateFn:
        """See `MetaLearner`."""
        ...


class InitThetaFn(Protocol):
    """Draws a learned rule's meta-parameters."""

    def __call__(self, key: jax.Array, params: Params | None = None) -> PyTree:
        """Returns theta, a plain pytree; `params` are the parameters it will update."""
        ...


class LearnedOptimizer(NamedTuple):
    """A family of optax transformations indexed by meta-parameters `theta`.

    Attributes:
      init: `init(key, params=None) -> theta`, a plain pytree. `params` is for rules
        with a meta-parameter for every parameter they update.
      transform: `transform(theta) -> optax.GradientTransformationExtraArgs`, complete
        like `optax.adam(learning_rate)`: its output is added to the parameters.
        Differentiable in `theta`; the loss arrives as keyword `value`.
      description: its repr, the call that made it.
    """

    init: InitThetaFn
    transform: Callable[[PyTree], optax.GradientTransformationExtraArgs]
    description: str = ""

    def __repr__(self) -> str:
        """The description, or the factory's name if there is none."""
        name = getattr(self.transform, "__qualname__", "?").split(".")[0]
        return self.description or f"LearnedOptimizer({name})"


class OptimizationProblem(NamedTuple):
    """A family of optimization problems.

    Attributes:
      sample: `sample(key) -> instance`, drawn once per run (a quadratic's W and y).
      init: `init(key, instance) -> params`, where the run starts.
      loss: `loss(params, instance, key) -> scalar`; the key draws the minibatch.
      full_loss: `full_loss(params, instance) -> scalar`, over all data of the instance;
        None if these are not finitely many.
    """

    sample: Callable[[jax.Array], PyTree]
    init: Callable[..., Params]  # (key, inputs)
    loss: Callable[[Params, PyTree, jax.Array], jax.Array]
    full_loss: Callable[[Params, PyTree], jax.Array] | None = None


class EstimateFn(Protocol):
    """Estimates one meta-gradient, over a batch of tasks or of unrolls."""

    def __call__(
        self, key: jax.Array, meta_params: Params, carry: PyTree, **extra: Any
    ) -> tuple[Params, PyTree, Info]:
        """Returns `(meta_grads, carry, info)`."""
        ...


class GradientEstimator(NamedTuple):
    """Initial meta-parameters and a gradient, all that a training step needs.

    Attributes:
      init: `init(key) -> (meta_params, carry)`. The carry is the state between steps
        (optimizee states, PES accumulators); None for stateless estimators.
      estimate: see `EstimateFn`.
    """

    init: Callable[[jax.Array], tuple[Params, PyTree]]
    estimate: EstimateFn


class TaskStream(NamedTuple):
    """Tasks read on the host, one batch per meta-step.

    Attributes:
      num_tasks: T, tasks per meta-step over all processes.
      example: a task; only its shapes and dtypes are used.
      read: `read(step) -> iterator` over the batches of meta-steps `step`, `step` + 1,
        ...: a `Task` of NumPy arrays [T / processes, ...], this process's share, never
        in a reused buffer. A step always has the same batch, so that runs can resume.
      mesh: shards the batches over its devices; None uses one device.
    """

    num_tasks: int
    example: Task
    read: Callable[[int], Iterator[Task]]
    mesh: Mesh | None = None


class TrainState(NamedTuple):
    """Everything required to resume a run, and nothing else."""

    step: jax.Array  # [] int32, completed meta-steps
    meta_params: Params
    carry: PyTree  # the estimator's
    opt_state: optax.OptState
    key: jax.Array  # typed PRNG key


class StepFn(Protocol):
    """Makes one meta-step."""

    def __call__(self, state: TrainState, **extra: Any) -> tuple[TrainState, Info]:
        """Returns the next state and diagnostics."""
        ...


class TrainStep(NamedTuple):
    """Initialisation and step of a training run; neither is jitted.

    Attributes:
      init: `(key) -> TrainState`.
      step: `(state, **extra) -> (state, info)`, pure; a `jax.tree_util.Partial` whose
        leaves are the data of what it trains on. `extra` is passed to the estimator.
    """

    init: Callable[[jax.Array], TrainState]
    step: StepFn
