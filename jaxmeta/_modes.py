"""Names of the argument by which a module is told that this is a training pass."""

import inspect
from typing import Any

# Names of the mode argument in modules, and its value in a training pass.
_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
NO_STATISTICS = (
    "The parameters hold no statistics of a support set. With statistics='support' "
    "predictions require `with_support_statistics(params, support_inputs)`, not just "
    "`params`."
)


def accepted_modes(module: Any) -> dict[str, bool]:
    """Returns the mode arguments that `module.__call__` takes, with their values."""
    names = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in _MODES.items() if name in names}


def mode(modes: dict[str, bool], train: bool) -> dict[str, bool]:
    """Returns the mode arguments for this pass."""
    return {name: value == train for name, value in modes.items()}
