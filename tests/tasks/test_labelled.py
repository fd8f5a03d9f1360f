"""MNIST and CIFAR-10: made files in the official formats, and the real MNIST."""

import gzip
import io
import os
import pathlib
import tarfile

import chex
import numpy as np
import pytest

import jaxmeta as jm
from jaxmeta.tasks import _labelled, _labelled_builder, download
from tests.tasks.test_datasets import _serve

REAL = pathlib.Path(__file__).parents[3] / "shared" / "data"


def _digits(count, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    return images, rng.integers(0, 10, count).astype(np.uint8)


def _photographs(count, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return images, rng.integers(0, 10, count).astype(np.uint8)


def make_data(files, data_dir, names):
    """Prepares `data_dir`, through real downloads, from files made in `files`."""
    pytest.importorskip("tensorflow_datasets")
    for seed, (prefix, count) in enumerate({"train": 30, "t10k": 10}.items()):
        images, labels = _digits(count, seed)
        for kind, head, array in (
            ("images-idx3", 16, images),
            ("labels-idx1", 8, labels),
        ):
            with gzip.open(files / f"{prefix}-{kind}-ubyte.gz", "w") as file:
                file.write(bytes(head) + array.tobytes())
    with tarfile.open(files / "cifar.tar.gz", "w:gz") as archive:

        def add(name, content):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        add("batches.meta.txt", b"a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n")
        batches = [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]
        for seed, name in enumerate(batches):
            images, labels = _photographs(4, seed)
            planes = images.transpose(0, 3, 1, 2).reshape(4, -1)
            add(name, np.concatenate([labels[:, None], planes], 1).tobytes())
    with _serve(files) as host, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_labelled_builder, "_MNIST", host)
        patch.setattr(_labelled_builder, "_CIFAR10", f"{host}/cifar.tar.gz")
        for name in names:
            download.main([name, "--data-dir", os.fspath(data_dir)])


@pytest.fixture(scope="module")
def made_dir(tmp_path_factory):
    files, data_dir = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("data")
    make_data(files, data_dir, ("mnist", "cifar10"))
    return data_dir


@pytest.fixture(autouse=True)
def cache_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "cache"))
    return tmp_path / "cache" / "jaxmeta"


def _assert_same(got, images, labels):
    """The same examples; tensorflow-datasets shuffles them."""
    expected = sorted(
        (x.tobytes(), int(y)) for x, y in zip(images, labels, strict=True)
    )
    found = sorted((x.tobytes(), int(y)) for x, y in zip(*got, strict=True))
    assert found == expected


def test_mnist_comes_as_it_was_written(made_dir):
    splits = jm.tasks.load_mnist(made_dir)
    assert splits.train.images.shape == (30, 28, 28, 1)
    _assert_same(splits.train, *_digits(30, 0))
    _assert_same(splits.test, *_digits(10, 1))


def test_cifar10_comes_as_it_was_written(made_dir):
    splits = jm.tasks.load_cifar10(made_dir)
    assert splits.train.images.shape == (20, 32, 32, 3)
    images, labels = zip(*(_photographs(4, seed) for seed in range(5)), strict=True)
    _assert_same(splits.train, np.concatenate(images), np.concatenate(labels))
    _assert_same(splits.test, *_photographs(4, 5))


@pytest.mark.parametrize("load", [jm.tasks.load_mnist, jm.tasks.load_cifar10])
def test_a_second_load_decodes_nothing(load, made_dir, cache_dir, monkeypatch):
    first = load(made_dir)
    assert len(list(cache_dir.iterdir())) == 1
    monkeypatch.setattr(_labelled, "_read", None)
    chex.assert_trees_all_equal(load(made_dir), first)


def test_what_is_prepared_here_is_read_by_stock_tfds(made_dir):
    import tensorflow_datasets as tfds

    for name in ("mnist", "cifar10"):
        source = tfds.data_source(
            name,
            split="test",
            data_dir=made_dir,
            download=False,
            decoders={"image": tfds.decode.SkipDecoding()},
        )
        assert source[0]["image"].startswith(b"\x89PNG")
    assert tfds.builder("cifar10", data_dir=made_dir).info.features["label"].names == (
        list("abcdefghij")
    )


def test_a_damaged_data_set_is_named(made_dir, tmp_path):
    folder = tmp_path / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"does not hold all of mnist.*Remove that"):
        jm.tasks.load_mnist(tmp_path)


def test_with_nothing_prepared_and_no_network(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    monkeypatch.setattr(_labelled_builder, "_CIFAR10", "http://127.0.0.1:1/a.tar.gz")
    with pytest.raises(
        FileNotFoundError, match=r"download cifar10 --data-dir .*download"
    ):
        jm.tasks.load_cifar10(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not (REAL / "tfds").is_dir(), reason="no prepared MNIST beside")
def test_real_mnist():
    pytest.importorskip("tensorflow_datasets")
    splits = jm.tasks.load_mnist(REAL / "tfds")
    with np.load(REAL / "mnist" / "mnist.npz") as arrays:
        _assert_same(splits.test, arrays["x_test"], arrays["y_test"])
