"""miniImageNet from made folders and lists."""

import numpy as np
import pytest

import jaxmeta as jm

Image = pytest.importorskip("PIL.Image")

# Classes and their images by part; a JPEG of one colour keeps it nearly.
PARTS = {
    "train": {"n01": [10, 40, 70], "n02": [100]},
    "val": {"n03": [130, 160]},
    "test": {"n04": [190], "n05": [220, 250]},
}


def _save(path, value, size=8):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((size, size, 3), [value, 255 - value, 90], np.uint8)
    Image.fromarray(pixels).save(path)


def _write_folders(root):
    for part, classes in PARTS.items():
        for name, values in classes.items():
            for n, value in enumerate(values):
                _save(root / part / name / f"{n}.jpg", value)


def _write_lists(root):
    """Rows in an order that is neither that of the classes nor of the files."""
    for part, classes in PARTS.items():
        rows = []
        for name, values in classes.items():
            for n, value in enumerate(values):
                file = f"{name}{9 - n:08}.jpg"
                _save(root / "images" / file, value)
                rows.append((n, f"{file},{name}"))
        lines = [row for _, row in sorted(rows)]
        (root / f"{part}.csv").write_text("\n".join(["filename,label", *lines, ""]))


@pytest.mark.parametrize("write", [_write_folders, _write_lists])
def test_both_layouts_are_read(write, tmp_path):
    write(tmp_path)
    splits = jm.tasks.load_mini_imagenet(tmp_path, size=4)
    for part, classes in zip(splits, PARTS.values(), strict=True):
        assert part.names == tuple(classes)
        assert part.num_examples.tolist() == [len(v) for v in classes.values()]
        assert part.num_examples.dtype == np.int32
        most = max(map(len, classes.values()))
        assert part.images.shape == (len(classes), most, 4, 4, 3)
        assert part.images.dtype == np.uint8
        for images, values in zip(part.images, classes.values(), strict=True):
            for image, value in zip(images, values, strict=False):
                expected = np.broadcast_to([value, 255 - value, 90], (4, 4, 3))
                np.testing.assert_allclose(image.astype(int), expected, atol=3)
            assert not images[len(values) :].any()


def test_images_are_84_pixels_by_default(tmp_path):
    _write_folders(tmp_path)
    splits = jm.tasks.load_mini_imagenet(tmp_path)
    assert splits.test.images.shape == (2, 2, 84, 84, 3)


def test_folders_go_before_lists(tmp_path):
    _write_lists(tmp_path)
    _write_folders(tmp_path)
    (tmp_path / "train" / "n02").rename(tmp_path / "train" / "n00")
    splits = jm.tasks.load_mini_imagenet(tmp_path, size=4)
    assert splits.train.names == ("n00", "n01")


@pytest.mark.parametrize(
    ("present", "message"),
    [
        ([], "train and val and test missing.*train.csv and val.csv and test.csv and"),
        (["train/", "test/"], r"in folders \(val missing\)"),
        (["images/", "train.csv", "test.csv"], r"in lists \(val.csv missing\)"),
        (["train.csv", "val.csv", "test.csv"], r"in lists \(images missing\)"),
    ],
)
def test_what_is_missing_is_named(present, message, tmp_path):
    for name in present:
        path = tmp_path / name
        path.mkdir() if name.endswith("/") else path.write_text("filename,label\n")
    with pytest.raises(FileNotFoundError, match=message):
        jm.tasks.load_mini_imagenet(tmp_path)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no folder .*nowhere"):
        jm.tasks.load_mini_imagenet(tmp_path / "nowhere")


def test_a_listed_image_that_is_missing_is_named(tmp_path):
    _write_lists(tmp_path)
    (tmp_path / "images" / "n0300000009.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*n0300000009\.jpg"):
        jm.tasks.load_mini_imagenet(tmp_path, size=4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\na.jpg,n01\n", r"val.csv must begin with the line.*'file', 'clas"),
        ("", r"must begin with the line 'filename,label', got columns None"),
        ("filename,label\n", r"val.csv lists no images"),
        ("filename,label\na.jpg\n", r"Line 2 of .*val.csv must be .*'a.jpg' and None"),
    ],
)
def test_a_list_that_is_none_is_named(text, message, tmp_path):
    _write_lists(tmp_path)
    (tmp_path / "val.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        jm.tasks.load_mini_imagenet(tmp_path, size=4)
