"""Files of meta-parameters, with their cards."""

import json

import chex
import jax
import jax.numpy as jnp
import pytest

import jaxmeta as jm


def _lopt():
    return jm.optimizers.lstm(3)


def test_pretrained_come_back(key, tmp_path):
    theta = _lopt().init(key)
    jm.training.save(tmp_path / "mine.safetensors", theta, {"note": "x"})
    loaded = jm.training.load(tmp_path / "mine.safetensors", like=theta)
    chex.assert_trees_all_equal(loaded, theta)
    card = jm.training.load_card(tmp_path / "mine.safetensors")
    assert card == {"note": "x"}
    assert json.loads((tmp_path / "mine.json").read_text()) == card


def test_pretrained_of_another_architecture(key, tmp_path):
    path = tmp_path / "mine.safetensors"
    jm.training.save(path, _lopt().init(key))
    like = jm.optimizers.lstm(4).init(key)
    with pytest.raises(ValueError, match="`path` does not match this architecture"):
        jm.training.load(path, like=like)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", None])
def test_a_damaged_file(content, key, tmp_path):
    path = tmp_path / "mine.safetensors"
    theta = _lopt().init(key)
    jm.training.save(path, theta)
    path.write_bytes(path.read_bytes()[:100] if content is None else content)
    with pytest.raises(ValueError, match="`path` is damaged"):
        jm.training.load(path, like=theta)


def test_nothing_is_overwritten_unless_asked(key, tmp_path):
    path = tmp_path / "mine.safetensors"
    jm.training.save(path, _lopt().init(key), {"note": "old"})
    new = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="`path` already exists"):
        jm.training.save(path, new)
    jm.training.save(path, new, overwrite=True)
    chex.assert_trees_all_equal(jm.training.load(path, like=new), new)
    assert jm.training.load_card(path) == {}


def test_paths_are_named(tmp_path):
    missing = tmp_path / "mine.safetensors"
    for read in (lambda path: jm.training.load(path, like={}), jm.training.load_card):
        with pytest.raises(ValueError, match="`path` holds no weights"):
            read(missing)
    with pytest.raises(ValueError, match=r"neither a folder nor named \*\.safetensors"):
        jm.training.load(tmp_path / "mine.npz", like={})
    with pytest.raises(ValueError, match=r"`path` must be a file \*\.safetensors"):
        jm.training.load_card(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"`card` is for files \*\.safetensors"):
        jm.training.save(tmp_path / "mine", {"w": jnp.ones(2)}, {"note": "x"})


def test_a_neighbour_is_not_touched(tmp_path):
    neighbour = tmp_path / "mine.tmp"
    neighbour.write_text("precious")
    jm.training.save(tmp_path / "mine.safetensors", {"w": jnp.ones(2)}, {})
    assert neighbour.read_text() == "precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine.json",
        "mine.safetensors",
        "mine.tmp",
    ]


INTEGERS = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
FLOATS = ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16", "float32", "float64"]
DTYPES = ["bool", *INTEGERS, *FLOATS, "complex64"]


@pytest.mark.parametrize("name", ["mine.safetensors", "mine"])
def test_every_type_comes_back(name, tmp_path, x64):
    tree = {name: jnp.array([0, 1, 1]).astype(name) for name in DTYPES}
    tree |= {"number": 0.5, "count": 3}
    jm.training.save(tmp_path / name, tree)
    loaded = jm.training.load(tmp_path / name, like=tree)
    expected = jax.tree.map(jnp.asarray, tree)
    chex.assert_trees_all_equal_dtypes(loaded, expected)
    chex.assert_trees_all_equal(loaded, expected)


def test_types_that_files_do_not_have_are_named(key, tmp_path):
    path = tmp_path / "mine.safetensors"
    for leaf, name in ((key, "key<fry>"), (jnp.ones(2, "int4"), "int4"), ("x", "<U1")):
        with pytest.raises(ValueError, match=f"arrays of bool.*got {name} at 'w'"):
            jm.training.save(path, {"w": leaf})
    for leaf in (jnp.ones(2, "uint2"), "x"):
        with pytest.raises(ValueError, match=r"saved, got .* at 'w'"):
            jm.training.save(tmp_path / "mine", {"w": leaf})
    jm.training.save(tmp_path / "mine", {"w": key})
    assert jm.training.load(tmp_path / "mine", like={"w": key})["w"] == key


def test_pretrained_are_cast_to_another_float_but_not_to_integers(tmp_path):
    path = tmp_path / "mine.safetensors"
    jm.training.save(path, {"w": jnp.full(2, 0.5)})
    narrow = jm.training.load(path, like={"w": jnp.ones(2, jnp.bfloat16)})
    assert narrow["w"].dtype == jnp.bfloat16 and narrow["w"][0] == 0.5
    with pytest.raises(ValueError, match=r"`path` does not match this arch.*integer"):
        jm.training.load(path, like={"w": jnp.ones(2, int)})


def test_cards_that_are_none_are_named(tmp_path):
    path = tmp_path / "mine.safetensors"
    with pytest.raises(ValueError, match="`card` must hold plain JSON values"):
        jm.training.save(path, {"w": jnp.ones(2)}, {"theta": jnp.ones(2)})
    assert not list(tmp_path.iterdir())
    jm.training.save(path, {"w": jnp.ones(2)})
    for content in ("[1]", "{"):
        (tmp_path / "mine.json").write_text(content)
        with pytest.raises(ValueError, match=r"is damaged: .*mine\.json"):
            jm.training.load_card(path)
