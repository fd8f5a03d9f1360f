"""Metrics for TensorBoard (extra `tensorboard`)."""

import os
from collections.abc import Callable, Mapping
from typing import Any


def tensorboard(
    directory: str | os.PathLike[str],
) -> Callable[[Mapping[str, Any]], None]:
    """Makes a `report` for `fit` that writes records for TensorBoard.

    Validation has its own tags: "loss/validation" next to "loss/training". View them
    with `tensorboard --logdir DIRECTORY`.

    Args:
      directory: folder for the event files; created with the first record.

    Returns:
      `(record) -> None`, for `fit(report=...)`.

    Raises:
      ImportError: if tensorboardX is not installed.

    Example:
      >>> report = tensorboard("runs/mine/tensorboard")
      >>> callable(report)
      True
    """
    try:
        import tensorboardX
    except ImportError as error:
        raise ImportError(
            "TensorBoard requires tensorboardX: pip install tensorboardX"
        ) from error
    writers: list[Any] = []

    def report(record: Mapping[str, Any]) -> None:
        if not writers:
            # Its thread flushes every second, since a run may be killed at any moment.
            writers.append(
                tensorboardX.SummaryWriter(os.fspath(directory), flush_secs=1)
            )
        for name, value in record.items():
            metric = name.removeprefix("validation_")
            part = "training" if metric == name else "validation"
            if name != "step":
                writers[0].add_scalar(f"{metric}/{part}", value, record["step"])

    return report
