"""Matching networks, with and without full context embeddings.

References:
  Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra, "Matching Networks for One Shot
  Learning", NeurIPS 2016, equation 1; appendix A for full context embeddings.
  https://arxiv.org/abs/1606.04080
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxmeta import _checks, _describe, base, losses
from jaxmeta.learners import _embeddings, _metric

SIMILARITIES = ("cosine", "l2")


class LstmParams(NamedTuple):
    """An LSTM cell of D units; gates in the order input, forget, cell, output."""

    inputs: jax.Array  # [D, 4 D]
    hidden: jax.Array  # [H, 4 D]; H > D if more than h is fed back
    bias: jax.Array  # [4 D]


class MatchingParams(NamedTuple):
    """The LSTMs of full context embeddings."""

    forward: LstmParams  # over the support
    backward: LstmParams
    attention: LstmParams  # of a query attending to the support


class MatchingSupport(NamedTuple):
    """The support that queries are matched with."""

    embeddings: jax.Array  # [N, D]
    targets: jax.Array  # [N, W]


def matching(
    model: base.ModelLike,
    *,
    similarity: str = "cosine",
    temperature: float | None = None,
    full_context: bool = False,
    context_steps: int = 5,
    loss: base.LossFn = losses.cross_entropy,
    metrics: Mapping[str, base.MetricFn] | None = None,
) -> base.MetaLearner:
    r"""Learns an embedding whose nearest neighbours share the class.

    A query attends to the support examples :math:`(x_i, y_i)` and predicts the mean of
    their labels,

    .. math::
      P(y \mid x, S) = \sum_i a_i(x) y_i, \qquad
      a(x) = \operatorname{softmax}_i \frac{s(f(x, S), g(x_i, S))}{\tau};

    the logits are :math:`\log P`. Without context :math:`f = g` is the embedding
    :math:`f'`. With full context, :math:`g(x_i, S) = f'(x_i) + \overrightarrow{h}_i +
    \overleftarrow{h}_i` adds a bidirectional LSTM over the support, and
    :math:`f(x, S) = h_K` after K steps of an LSTM that reads the support:

    .. math::
      \hat h_k, c_k &= \operatorname{LSTM}(f'(x), [h_{k-1}, r_{k-1}], c_{k-1}), \qquad
      h_k = \hat h_k + f'(x), \\
      r_k &= \sum_i \operatorname{softmax}_i(h_k^\top g(x_i, S)) \, g(x_i, S).

    Args:
      model: the embedding, anything with `init(key, inputs)` and
        `apply(params, inputs)`; its output is flattened to [N, D].
      similarity: "cosine", or "l2", minus the squared distance. Static.
      temperature: tau. None: 0.1 for cosines, 1 for distances.
      full_context: condition all embeddings on the whole support. The LSTM over the
        support reads it in the given order, so the order matters. Static.
      context_steps: K, the number of times a query reads the support. Static.
      loss: `(logits [Q, W], targets [Q, W]) -> scalar`, a mean over Q.
      metrics: name -> `(logits, targets) -> scalar`. None: accuracy for
        `jaxmeta.losses.cross_entropy`, else none.

    Returns:
      A `MetaLearner`. Its meta-parameters are the model's own, or
      `MetricParams(params, head_params)` with `full_context`. Ways and shots may differ
      from task to task; a class without support examples is never predicted, and rows
      of zeros in targets are padding.

    Raises:
      ValueError: if `similarity` is unknown, `temperature` not positive or
        `context_steps` not a positive int; while tracing, if targets are not one-hot,
        support and query differ in classes, a set is ragged or empty, or parameters
        are not floats.

    Differs from the paper: cosines are divided by a temperature; the paper's is 1, for
    which a softmax over cosines stays flat. The query LSTM starts from h = 0, so it
    first reads the mean of the support; the paper leaves that open.

    Example:
      >>> import jax, jax.numpy as jnp, jaxmeta as jm
      >>> from jaxmeta.learners import matching
      >>> learner = matching(
      ...     jm.Model(lambda key, x: jnp.ones(()), lambda w, x: w * x),
      ...     similarity="l2",
      ... )
      >>> support = jm.Examples(
      ...     inputs=jnp.array([[1.0], [1.0], [1.0], [3.0]]),
      ...     targets=jnp.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
      ... )
      >>> key = jax.random.key(0)
      >>> task_params, _ = learner.adapt(key, jnp.ones(()), support)
      >>> logits = learner.predict(task_params, jnp.array([[2.0]]))  # all equally near
      >>> print(jnp.exp(logits))
      [[0.75 0.25]]
    """
    description = _describe.describe(matching, locals())
    _checks.check_choice("similarity", similarity, SIMILARITIES)
    _checks.check_int("context_steps", context_steps)
    if temperature is None:
        temperature = 0.1 if similarity == "cosine" else 1.0
    _checks.check_positive("temperature", temperature)
    if metrics is None:
        metrics = losses.default_metrics(loss)

    def init(key, support):
        size, dtype = support.inputs.shape[1], jnp.result_type(float)
        # Hidden sizes H; the attention LSTM feeds back [h, r], so H = 2 D.
        sizes = MatchingParams(forward=size, backward=size, attention=2 * size)
        keys = MatchingParams(*jax.random.split(key, len(sizes)))
        cell = lambda key, hidden: _init_lstm(key, size, hidden, dtype)
        return jax.tree.map(cell, keys, sizes)

    def fit(head_params, support, **options):
        del options
        g = support.inputs
        if full_context:
            head_params = jax.tree.map(lambda x: x.astype(g.dtype), head_params)
            is_example = losses.is_example(support.targets)
            states = _run_lstm(head_params.forward, g, is_example)
            states += _run_lstm(head_params.backward, g, is_example, reverse=True)
            g = g + states
        return MatchingSupport(g, support.targets), None

    def logits(head_params, support, embeddings, **options):
        del options
        f, g = embeddings, support.embeddings
        # LOWEST masks padding out of the attention; [1, N].
        mask = jnp.where(losses.is_example(support.targets), 0, _metric.LOWEST)[None]
        mask = mask.astype(f.dtype)
        if full_context:
            lstm = jax.tree.map(lambda x: x.astype(f.dtype), head_params.attention)
            f = _in_context(lstm, g, f, mask, context_steps)
        if similarity == "cosine":
            similarities = _embeddings.cosines(f, g)
        else:
            similarities = -_embeddings.squared_distances(f, g)
        attention = jax.nn.log_softmax(similarities / temperature + mask, -1)  # [Q, N]
        return _log_matmul_exp(attention, support.targets)

    return _metric.metric_learner(
        model,
        _metric.Head(fit, logits, init if full_context else None),
        loss=loss,
        metrics=metrics,
        description=description,
    )


def _in_context(lstm, g, f, mask, num_steps):
    """Conditions queries f [Q, D] on the support g [N, D], with mask [1, N]."""

    def read(carry, _):
        h, c = carry
        r = jax.nn.softmax(h @ g.T + mask, -1) @ g
        h, c = _lstm(lstm, f, jnp.concatenate([h, r], -1), c)
        return (h + f, c), None

    start = (jnp.zeros_like(f), jnp.zeros_like(f))
    (h, _), _ = jax.lax.scan(read, start, length=num_steps)
    return h


def _log_matmul_exp(log_weights, targets):
    """Returns log(exp(log_weights) @ targets), [Q, W]; LOWEST instead of log 0."""
    is_in_class = (targets > 0)[None]  # [1, N, W]
    # The inner `where` keeps log 0 = -inf, and its NaN gradient, out of `terms`.
    log_targets = jnp.log(jnp.where(targets > 0, targets, 1))[None]
    terms = jnp.where(
        is_in_class, log_weights[:, :, None] + log_targets, _metric.LOWEST
    )
    return jax.nn.logsumexp(terms, 1)


def _init_lstm(key, size, hidden_size, dtype):
    input_key, hidden_key = jax.random.split(key)
    reach = size**-0.5
    draw = lambda key, rows: jax.random.uniform(
        key, (rows, 4 * size), dtype, -reach, reach
    )
    # A forget bias of 1 opens these gates initially.
    bias = jnp.repeat(jnp.array([0, 1, 0, 0], dtype), size)
    return LstmParams(draw(input_key, size), draw(hidden_key, hidden_size), bias)


def _lstm(params, x, h, c):
    """One step of the cell: x [..., D], h [..., H], c [..., D] -> (h, c)."""
    bias = jnp.broadcast_to(params.bias, (*x.shape[:-1], *params.bias.shape))
    gates = x @ params.inputs + h @ params.hidden + bias
    i, f, g, o = jnp.split(gates, 4, -1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _run_lstm(params, xs, is_example, reverse=False):
    """Returns the hidden states [N, D] over a sequence [N, D]; padding is skipped."""

    def step(carry, row):
        x, is_real = row
        h, c = _lstm(params, x, *carry)  # padding leaves the carry unchanged
        carry = jax.tree.map(
            lambda new, old: jnp.where(is_real, new, old), (h, c), carry
        )
        return carry, h

    start = (jnp.zeros_like(xs[0]), jnp.zeros_like(xs[0]))
    return jax.lax.scan(step, start, (xs, is_example), reverse=reverse)[1]
