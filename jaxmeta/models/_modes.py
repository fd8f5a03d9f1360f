"""What the adapters of modules share: the names that modules give to a mode."""

import inspect
from typing import Any

# What modules call the argument that says which pass this is, and its value in a pass
# on which gradients are taken.
_MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
NO_STATISTICS = (
    "The parameters hold no statistics of a support set. With statistics='support' "
    "predictions need `with_support_statistics(params, support_inputs)`, not `params` "
    "alone."
)


def accepted_modes(module: Any) -> dict[str, bool]:
    """Returns those of the names that `module.__call__` has, with their values."""
    names = inspect.signature(type(module).__call__).parameters
    return {name: value for name, value in _MODES.items() if name in names}


def mode(modes: dict[str, bool], train: bool) -> dict[str, bool]:
    """Returns the arguments that say which pass this is."""
    return {name: value == train for name, value in modes.items()}
