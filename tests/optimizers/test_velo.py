"""VeLO, against a loop by NumPy; its files."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization

import jaxmeta as jm
from tests.optimizers._by_hand import VeloByHand, check_run, published_network

SMALL = {"hidden_size": 6, "num_networks": 5}


def _theta(lopt, key):
    """With a start that is not zero."""
    theta = lopt.init(key)
    start = {"hidden": jnp.linspace(-1, 1, 6), "cell": -jnp.ones(6)}
    return theta._replace(scheduler=theta.scheduler._replace(**start))


def test_it_is_its_formula(key, x64):
    lopt = jm.optimizers.velo(12, **SMALL)
    check_run(lopt, _theta(lopt, key), VeloByHand, key)


def _published(theta):
    """As the authors' code saves it."""
    layer = lambda x: {"w": x.kernel, "b": x.bias}
    scheduler = theta.scheduler
    recurrent = {
        "linear_1": layer(scheduler.pooled),
        "linear_2": layer(scheduler.inputs),
        "rnn/linear": layer(scheduler.lstm),
        "step_size": layer(scheduler.rate),
        "rnn_to_controls": layer(theta.controls),
    }
    start = {"hidden": scheduler.hidden[None], "cell": scheduler.cell[None]}
    tree = {
        "ff_mod_stack": published_network(theta.networks),
        "rnn_params": recurrent,
        "lstm_init_state": start,
    }
    return serialization.msgpack_serialize(jax.tree.map(np.asarray, tree))


def test_it_reads_published_weights_of_its_size(key, tmp_path):
    path = tmp_path / "theta.state"
    lopt = jm.optimizers.velo(10)
    theta = lopt.init(key)
    path.write_bytes(_published(theta))
    grads = {"w": jnp.array([[0.5, -1.0], [2.0, 0.1]]), "b": jnp.ones(3)}
    found, expected = (
        tx.update(grads, tx.init(grads), grads, value=jnp.ones(()))[0]
        for tx in (
            jm.optimizers.load_velo(path, total_steps=10),
            lopt.transform(theta),
        )
    )
    for name, x in found.items():
        np.testing.assert_allclose(x, expected[name], rtol=1e-6)


def test_other_files_and_sizes_are_named(key, tmp_path):
    path, small = tmp_path / "theta.state", tmp_path / "small.state"
    path.write_bytes(b"nothing")
    small.write_bytes(_published(_theta(jm.optimizers.velo(**SMALL), key)))
    for wrong in (path, tmp_path / "missing"):
        with pytest.raises(ValueError, match="`path` must be a file with VeLO's"):
            jm.optimizers.load_velo(wrong)
    with pytest.raises(ValueError, match="`path`"):
        jm.optimizers.load_velo(small)
    for name in ("hidden_size", "num_networks"):
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            jm.optimizers.velo(**{name: 0})
