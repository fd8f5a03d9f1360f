"""Which files of a folder are images."""

import pathlib

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif")


def image_paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folder's images in order, without hidden files."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
