"""Model-agnostic meta-learning for policies.

References:
  Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep
  Networks", ICML 2017, Algorithm 3. https://arxiv.org/abs/1703.03400
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, _unroll, base
from jaxmeta.rl import _env, _loop, _policies, _surrogates


class PolicyLearner(NamedTuple):
    """A `MetaLearner` whose tasks are environment parameters.

    Its first five fields are those of `jaxmeta.MetaLearner`, so it can be used wherever
    a learner can.

    Attributes:
      init: `(key, task) -> meta_params`.
      adapt: `(key, meta_params, support) -> (task_params, AdaptationInfo)`; `support`
        is the task, in which episodes are drawn.
      predict: `(task_params, observations) -> distribution`.
      meta_grad: `(key, meta_params, task) -> (meta_grads, PolicyInfo)`.
      evaluate: `(key, meta_params, task, inner_steps=None) -> EvalInfo`; `loss` is
        minus the mean return.
      loop: the parts that `ppo` and `trpo` use.
      description: its repr, the call that made it.
    """

    init: base.InitFn
    adapt: base.AdaptFn
    predict: base.PredictFn
    meta_grad: base.MetaGradFn
    evaluate: base.EvaluateFn
    loop: _loop.PolicyLoop
    description: str = ""

    def __repr__(self) -> str:
        """The description."""
        return self.description or "PolicyLearner(...)"


def maml(
    env: _env.Environment,
    policy: _policies.Policy,
    *,
    inner_tx: optax.GradientTransformation,
    inner_steps: int = 1,
    num_episodes: int = 20,
    test_episodes: int | None = None,
    surrogate: _surrogates.Surrogate = "loaded-dice",
    sampling_term: float = 0.0,
    first_order: bool = False,
    hvp: _unroll.Hvp = "auto",
    discount: float = 0.99,
    gae_lambda: float = 1.0,
    baseline: _loop.Baseline | None = "linear",
    standardize: bool = True,
    average_over: _loop.AverageOver = "steps",
) -> PolicyLearner:
    r"""Learns a policy that a few policy-gradient steps adapt to a task.

    Every inner step draws B episodes of a task with the current policy,

    .. math::
      \theta_{k+1} = \theta_k + \alpha \hat\nabla J(\theta_k), \qquad
      g = -\hat\nabla_{\theta_0} J(\theta_K),

    with REINFORCE gradients inside (GAE advantages over a linear baseline fitted to the
    same episodes) and fresh episodes of the adapted policy for the outer gradient. The
    episodes are drawn first; the inner steps on them are then differentiated. The
    policy's model must treat every observation independently: with batch normalisation
    the policy in an episode would differ from that on a batch of episodes.

    Args:
      env: an `Environment`; its `sample_task` draws the tasks.
      policy: `gaussian_policy` or `categorical_policy` of any model.
      inner_tx: the inner step, `optax.sgd(0.5)` for `navigation`. Its state is
        initialised for every task. A schedule varies the rate over inner steps. For
        clipping or Adam use the rules in `jaxmeta.optimizers`: optax's have no
        derivative where a gradient is zero.
      inner_steps: K. Static.
      num_episodes: B, episodes before each inner step and after the last. Static.
      test_episodes: likewise in `evaluate`; None is `num_episodes`. Static.
      surrogate: inner surrogate objective, which determines the second-order part of
        the meta-gradient: "loaded-dice" and "dice" are unbiased (without `standardize`
        and `baseline`, which use the same episodes, and averaged over "episodes"),
        "low-variance" (ProMP) and "log-likelihood" (Finn et al. 2017) are biased. DiCE
        weighs time steps by the discount, inside and outside; the others do not. See
        `objective`. Static.
      sampling_term: weight of the meta-gradient of the inner sampling distribution
        (E-MAML; Stadie et al. 2018, Equation 4). With "log-likelihood", 1.0 and no
        discount, the meta-gradient is the exact gradient of the expected return after
        adaptation *on B episodes*. The ratios of the other surrogates already contain
        such a term (DiCE's all of it, for the return after the *expected* inner step):
        do not combine them. It weighs the return without a baseline, so its variance is
        high if returns are far from zero. Static.
      first_order: treat the inner gradients as constants. Static.
      hvp: as in `jaxmeta.maml`. Static.
      discount: gamma, of later rewards.
      gae_lambda: lambda of generalised advantage estimates.
      baseline: "linear" (Duan et al. 2016), or None. Static.
      standardize: shift and scale the advantages of a batch to mean 0 and variance 1.
        No effect on "dice", which uses raw rewards. Static.
      average_over: surrogates are means over time "steps", as in rllab, or means over
        "episodes" of sums; the latter gives the gradient of the mean discounted return
        if episodes differ in length. Static.

    Returns:
      A `PolicyLearner` for `jaxmeta.estimators.over_tasks`, `ppo` or `trpo`. A task
      with non-finite values (a NaN reward) has a zero meta-gradient and its info is not
      `is_valid`: estimators exclude it from their mean. `evaluate` hides nothing: such
      a task's return is NaN.

    Raises:
      ValueError: if a setting is out of range or the policy does not match the
        environment's actions; while tracing, if the environment's step changes shapes
        or dtypes or the policy's outputs have the wrong size.

    Example:
      >>> import jax, optax, jaxmeta as jm
      >>> env = jm.rl.bandit(2, noise=0.0)
      >>> policy = jm.rl.categorical_policy(jm.models.MLP([2]))
      >>> learner = maml(env, policy, inner_tx=optax.sgd(1.0), num_episodes=4)
      >>> key = jax.random.key(0)
      >>> task = env.sample_task(key)
      >>> meta_params = learner.init(key, task)
      >>> found = learner.evaluate(key, meta_params, task, inner_steps=3)
      >>> found.metrics["return"].shape
      (4,)

    References:
      Stadie et al., "Some Considerations on Learning to Explore via Meta-Reinforcement
      Learning", NeurIPS 2018. https://arxiv.org/abs/1803.01118
      Rothfuss et al., "ProMP: Proximal Meta-Policy Search", ICLR 2019.
      https://arxiv.org/abs/1810.06784
    """
    description = _describe.describe(maml, locals())
    settings = _loop.Settings(
        inner_tx=inner_tx,
        inner_steps=inner_steps,
        num_episodes=num_episodes,
        test_episodes=num_episodes if test_episodes is None else test_episodes,
        surrogate=surrogate,
        sampling_term=sampling_term,
        first_order=first_order,
        hvp=hvp,
        discount=discount,
        gae_lambda=gae_lambda,
        baseline=baseline,
        standardize=standardize,
        average_over=average_over,
    )
    loop = _loop.policy_loop(env, policy, settings)

    def meta_grad(key, meta_params, task, **extra):
        """Returns `(meta_grads, info)`, the gradients shaped like `meta_params`."""
        del extra
        samples, info = loop.collect(key, meta_params, task)
        grads, _ = jax.grad(loop.loss, has_aux=True)(meta_params, samples)
        return exclude(grads, info)

    def evaluate(key, meta_params, task, *, inner_steps=None):
        """Returns minus the mean return after 0 ... `inner_steps` inner steps."""
        steps = settings.inner_steps if inner_steps is None else inner_steps
        _checks.check_int("inner_steps", steps)
        returns = loop.returns(key, meta_params, task, steps)
        return base.EvalInfo(-returns, {"return": returns})

    return PolicyLearner(
        loop.init, loop.adapt, loop.predict, meta_grad, evaluate, loop, description
    )


def exclude(
    grads: base.Params, info: _loop.PolicyInfo
) -> tuple[base.Params, _loop.PolicyInfo]:
    """Zeroes the gradients of a task with non-finite values and marks it invalid."""
    is_valid = info.is_valid & _loop.all_finite(grads)
    grads = jax.tree.map(lambda g: jnp.where(is_valid, g, jnp.zeros_like(g)), grads)
    return grads, info._replace(is_valid=is_valid)
