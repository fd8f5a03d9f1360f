"""Reads archives that may be damaged, or made to harm: a ValueError, in one line."""

import pathlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence

import numpy as np

MAX_BYTES = 2**33  # that a file may unpack to, if nobody says otherwise

# SciPy's reader can crash on a damaged file: in a process of its own, it may.
_READ_MAT = """
import sys
import numpy as np
from scipy import io

path, out, max_bytes, *names = sys.argv[1:]
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(max_bytes),) * 2)
except (ImportError, ValueError, OSError):
    pass  # Not on this system, or already lower.
try:
    found = io.loadmat(path)
    text = lambda cells: np.array([str(np.squeeze(cell)) for cell in cells.ravel()])
    plain = lambda x: text(x) if x.dtype == object else x
    kept = {name: plain(found[name]) for name in names if name in found}
    np.savez(out, __stored__=sorted(x for x in found if x[:2] != "__"), **kept)
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def open_zip(path: pathlib.Path) -> zipfile.ZipFile:
    """Opens an archive.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is not an archive.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        return zipfile.ZipFile(path)
    # `zipfile` raises BadZipFile, NotImplementedError, OverflowError and others.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not a zip archive ({error})."
        ) from error


def read_members(
    archive: zipfile.ZipFile, names: Iterable[str], *, max_bytes: int
) -> dict[str, bytes]:
    """Reads files of an archive.

    Raises:
      ValueError: if they unpack to more than `max_bytes`, are encrypted, in an unknown
        compression or damaged.
    """
    names = [*names]
    check_unpacked(archive, names, max_bytes)
    try:
        return {name: archive.read(name) for name in names}
    # BadZipFile, zlib.error, RuntimeError of encrypted files, EOFError and others.
    except Exception as error:
        raise ValueError(f"{archive.filename} is damaged ({error}).") from error


def check_unpacked(
    archive: zipfile.ZipFile, names: Sequence[str], max_bytes: int
) -> None:
    """Raises ValueError if files unpack to more than `max_bytes`."""
    # What the archive says is what `zipfile` reads at most.
    total = sum(archive.getinfo(name).file_size for name in names)
    if total > max_bytes:
        raise ValueError(
            f"{archive.filename} unpacks to {total:,} bytes, more than `max_bytes`, "
            f"{max_bytes:,}."
        )


def read_npz(path: pathlib.Path, *, max_bytes: int) -> dict[str, np.ndarray]:
    """Reads all arrays of an .npz file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, has arrays of Python objects, or unpacks to more
        than `max_bytes`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            check_unpacked(archive, archive.namelist(), max_bytes)
        # Given a path, NumPy leaves a damaged file open.
        with open(path, "rb") as opened, np.load(opened) as file:
            return {name: file[name] for name in file.files}
    # NumPy raises ValueError, zipfile.BadZipFile, EOFError, MemoryError and others.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged or not an .npz file of plain arrays ({error})."
        ) from error


def read_mat(
    path: pathlib.Path, names: Sequence[str], *, max_bytes: int
) -> dict[str, np.ndarray]:
    """Reads arrays of a MATLAB file; cells become arrays of strings.

    Raises:
      ValueError: if the file is damaged, its reader needs more than `max_bytes`, or it
        lacks one of `names`.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "arrays.npz"
        command = [sys.executable, "-P", "-c", _READ_MAT, path, out, str(max_bytes)]
        done = subprocess.run([*command, *names], capture_output=True, text=True)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["the reader crashed"]
            raise ValueError(f"{path} is damaged or not a MATLAB file ({lines[-1]}).")
        found = read_npz(out, max_bytes=max_bytes)
    stored = found.pop("__stored__").tolist()
    if missing := sorted(set(names) - set(found)):
        raise ValueError(f"{path} has no {missing}; it holds {stored}.")
    return found
