"""An LSTM with an external memory, modelled on quasi-Newton methods.

References:
  Andrychowicz et al., "Learning to learn by gradient descent by gradient descent",
  NeurIPS 2016, Appendix D. https://arxiv.org/abs/1606.04474
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmeta import _checks, _describe, base
from jaxmeta.optimizers import _coordinates, _lstm, _memory, _preprocess, _rule


class NtmBfgsState(NamedTuple):
    """State of `ntm_bfgs`."""

    lstm: _coordinates.LstmState
    reads: tuple[Any, ...]  # one tree like the parameters per read head
    memory: Any


def ntm_bfgs(
    hidden_size: int = 20,
    num_layers: int = 2,
    *,
    num_reads: int = 1,
    num_writes: int = 3,
    num_averaged: int = 2,
    window: int | None = None,
    preprocess: _preprocess.Preprocess | None = None,
    output_scale: float | jax.Array = 0.1,
) -> base.LearnedOptimizer:
    r"""An LSTM with global averaging cells that keeps a matrix over the coordinates.

    The matrix plays the role of the inverse Hessian in BFGS. At each coordinate the
    controller sees the gradient and the previous step's reads; it outputs the update, a
    number :math:`r` per read head and a pair :math:`(a, b)` per write head:

    .. math::
      i_t = M_t r_t, \qquad M_{t+1} = M_t + \frac{1}{n} \sum_j a_{t,j} b_{t,j}^\top

    One read head, three write heads and two averaging cells suffice for BFGS, if the
    controller can compute any function of a coordinate.

    Args:
      hidden_size: H, units per layer. Static.
      num_layers: LSTM layers. Static.
      num_reads: read heads. Static.
      num_writes: write heads. Static.
      num_averaged: averaging cells per layer, as for `lstm_gac`. Static.
      window: None keeps the matrix, n x n numbers for n parameters. An int keeps the
        pairs of that many last steps instead, 2 `window` `num_writes` numbers per
        parameter: the limited-memory variant, identical for runs no longer than the
        window. Static.
      preprocess: features of gradients and reads; None is `log_gradient(p=10)`.
      output_scale: scale of the update.

    Returns:
      A `LearnedOptimizer`.

    Raises:
      ValueError: if a size is not a positive int or `num_averaged` is more than
        `hidden_size`; from the transformation, if `theta` does not match this
        architecture, or parameters are complex.

    Differs from the paper:
      Choices that the paper leaves open: the matrix starts at the identity, as in BFGS;
      writes are divided by n, so that reads do not grow with the number of parameters,
      and nothing decays; the reads at the first step are zeros.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> lopt = ntm_bfgs(hidden_size=4)
      >>> tx = lopt.transform(lopt.init(jax.random.key(0)))
      >>> grads = jnp.ones(3)
      >>> updates, state = tx.update(grads, tx.init(grads))
      >>> state.memory.shape
      (3, 3)
    """
    description = _describe.describe(ntm_bfgs, locals())
    _lstm.check_averaged(num_averaged, hidden_size)
    counts = {"num_layers": num_layers, "num_reads": num_reads}
    counts |= {"num_writes": num_writes, "window": 1 if window is None else window}
    for name, value in counts.items():
        _checks.check_int(name, value)
    if preprocess is None:
        preprocess = _preprocess.log_gradient()
    num_features = (1 + num_reads) * _preprocess.count_features(preprocess)
    output_sizes = [1, *[1] * num_reads, num_writes, num_writes]
    memory = _memory.dense() if window is None else _memory.sliding(window, num_writes)

    def init(key):
        return _coordinates.init_stack(
            key, num_features, hidden_size, num_layers, sum(output_sizes)
        )

    def init_state(theta, params, compute):
        return NtmBfgsState(
            lstm=_coordinates.init_stack_state(params, theta, compute),
            reads=tuple(
                optax.tree.zeros_like(params, compute) for _ in range(num_reads)
            ),
            memory=memory.init(params, compute),
        )

    def see(*vectors):
        return (jnp.concatenate([preprocess(x) for x in vectors], -1),)

    def update(theta, grads, state):
        (inputs,) = _coordinates.map_unzipped(see, 1, grads, *state.reads)
        outputs, lstm = _coordinates.apply_stack(
            theta, inputs, state.lstm, num_averaged
        )
        out, *reads, a, b = _coordinates.split_outputs(outputs, output_sizes)
        num_coordinates = sum(g.size for g in jax.tree.leaves(grads))
        b = jax.tree.map(lambda x: x / num_coordinates, b)
        scalars = lambda tree: jax.tree.map(lambda x: x[..., 0], tree)
        state = NtmBfgsState(
            lstm=lstm,
            reads=tuple(memory.read(state.memory, scalars(r)) for r in reads),
            memory=memory.write(state.memory, a, b),
        )
        return jax.tree.map(lambda x: output_scale * x[..., 0], out), state

    return _rule.from_network(description, init, init_state, update)
