"""Weights that ship, and users' own."""

import json

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxmeta as jm
from jaxmeta.optimizers import _weights

NAMES = tuple(_weights._PRETRAINED)


def test_a_pretrained_optimizer_beats_tuned_ones_on_quadratics(key):
    """On 200 fresh problems, momentum's and Adam's rates the best of a grid."""
    found = jm.optimizers.load_pretrained("lstm-quadratic")
    problem = jm.problems.quadratics()
    options = {"num_steps": 100, "num_problems": 200, "key": key}
    ours = jm.training.evaluate_optimizer(found.lopt, found.theta, problem, **options)
    for make_tx in (optax.adam, lambda rate: optax.sgd(rate, momentum=0.9)):
        family = jm.optimizers.learned_rate(make_tx)
        rates = [0.01, 0.02, 0.03, 0.1, 0.2]
        rate = jm.training.tune(family, rates, problem, **options).rate
        theirs = jm.training.evaluate_optimizer(family, rate, problem, **options)
        assert ours.summed.mean < 0.5 * theirs.summed.mean
        assert ours.median[-1] < theirs.median[-1]


@pytest.mark.parametrize("name", NAMES)
def test_pretrained_in_a_chain(name, key):
    tx = optax.chain(optax.clip_by_global_norm(1.0), jm.optimizers.pretrained(name))
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    state = tx.init(params)
    for _ in range(5):
        updates, state = jax.jit(tx.update)(params, state, params)
        params = optax.apply_updates(params, updates)
    chex.assert_tree_all_finite(params)


@pytest.mark.parametrize("name", NAMES)
def test_a_pretrained_optimizer_takes_a_donated_state(name):
    tx, p = jm.optimizers.pretrained(name), jnp.ones(3)
    jax.jit(lambda s: tx.update(p, s, p), donate_argnums=0)(tx.init(p))


@pytest.mark.parametrize("name", NAMES)
def test_cards_tell_what_users_must_know(name):
    card = jm.optimizers.load_pretrained(name).card
    assert card["name"] == name
    for field in ("optimizer", "trained", "on", "works", "fails"):
        assert len(card[field]) > 20


def test_all_weights_are_under_a_megabyte():
    assert sum(path.stat().st_size for path in _weights._FOLDER.iterdir()) < 2**20


def test_an_unknown_name():
    with pytest.raises(ValueError, match="`name` must be one of 'lstm-quadratic'"):
        jm.optimizers.pretrained("velo")


def _lopt():
    return jm.optimizers.lstm(3)


def test_weights_come_back(key, tmp_path):
    theta = _lopt().init(key)
    jm.optimizers.save(tmp_path / "mine.safetensors", theta, {"note": "x"})
    loaded, card = jm.optimizers.load(tmp_path / "mine.safetensors", like=theta)
    chex.assert_trees_all_equal(loaded, theta)
    assert card == {"note": "x"}
    assert json.loads((tmp_path / "mine.json").read_text()) == card


def test_weights_of_another_architecture(key, tmp_path):
    path = tmp_path / "mine.safetensors"
    jm.optimizers.save(path, _lopt().init(key))
    like = jm.optimizers.lstm(4).init(key)
    with pytest.raises(ValueError, match="`path` does not match this architecture"):
        jm.optimizers.load(path, like=like)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_damaged_file(content, key, tmp_path):
    path = tmp_path / "mine.safetensors"
    theta = _lopt().init(key)
    jm.optimizers.save(path, theta)
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    with pytest.raises(ValueError, match="`path` is damaged"):
        jm.optimizers.load(path, like=theta)


def test_nothing_is_overwritten(key, tmp_path):
    path = tmp_path / "mine.safetensors"
    jm.optimizers.save(path, _lopt().init(key))
    with pytest.raises(ValueError, match="`path` already exists"):
        jm.optimizers.save(path, {})


def test_paths_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.safetensors"):
        jm.optimizers.save(tmp_path / "mine.npz", {})
    with pytest.raises(ValueError, match="`path` holds no weights"):
        jm.optimizers.load(tmp_path / "mine.safetensors", like={})


def test_a_neighbour_is_not_touched(tmp_path):
    neighbour = tmp_path / "mine.tmp"
    neighbour.write_text("precious")
    jm.optimizers.save(tmp_path / "mine.safetensors", {"w": jnp.ones(2)}, {})
    assert neighbour.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.json",
        "mine.safetensors",
        "mine.tmp",
    ]


INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
FLOATS = ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64"]
DTYPES = ["bool", *INTEGERS, *FLOATS, "complex64"]


@pytest.mark.parametrize("save", ["optimizers", "training"])
def test_every_type_comes_back(save, tmp_path, x64):
    tree = {name: jnp.array([0, 1, 1]).astype(name) for name in DTYPES}
    tree |= {"number": 0.5, "count": 3}
    path = tmp_path / "mine.safetensors"
    if save == "optimizers":
        jm.optimizers.save(path, tree)
        loaded, _ = jm.optimizers.load(path, like=tree)
    else:
        jm.training.save(path, tree)
        loaded = jm.training.load(path, like=tree)
    expected = jax.tree.map(jnp.asarray, tree)
    chex.assert_trees_all_equal_dtypes(loaded, expected)
    chex.assert_trees_all_equal(loaded, expected)


def test_types_that_files_do_not_have_are_named(key, tmp_path):
    path = tmp_path / "mine.safetensors"
    for leaf, name in ((key, "key<fry>"), (jnp.ones(2, "int4"), "int4"), ("x", "<U1")):
        with pytest.raises(ValueError, match=f"arrays of bool.*got {name} at 'w'"):
            jm.optimizers.save(path, {"w": leaf})
    for leaf in (jnp.ones(2, "uint2"), "x"):
        with pytest.raises(ValueError, match=r"saved, got .* at 'w'"):
            jm.training.save(path, {"w": leaf})
    jm.training.save(path, {"w": key})
    assert jm.training.load(path, like={"w": key})["w"] == key


def test_weights_are_cast_to_another_float_but_not_to_integers(tmp_path):
    path = tmp_path / "mine.safetensors"
    jm.optimizers.save(path, {"w": jnp.full(2, 0.5)})
    narrow, _ = jm.optimizers.load(path, like={"w": jnp.ones(2, jnp.bfloat16)})
    assert narrow["w"].dtype == jnp.bfloat16 and narrow["w"][0] == 0.5
    with pytest.raises(ValueError, match=r"`path` does not match this arch.*integer"):
        jm.optimizers.load(path, like={"w": jnp.ones(2, int)})


def test_cards_that_are_none_are_named(tmp_path):
    path = tmp_path / "mine.safetensors"
    with pytest.raises(ValueError, match="`card` must hold plain JSON values"):
        jm.optimizers.save(path, {"w": jnp.ones(2)}, {"theta": jnp.ones(2)})
    assert not list(tmp_path.iterdir())
    jm.optimizers.save(path, {"w": jnp.ones(2)})
    for content in ("[1]", "{"):
        (tmp_path / "mine.json").write_text(content)
        with pytest.raises(ValueError, match=r"is damaged: .*mine\.json"):
            jm.optimizers.load(path, like={"w": jnp.ones(2)})
