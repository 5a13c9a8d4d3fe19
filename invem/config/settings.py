"""What PyTorch keeps for a whole process, which no component may change."""

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from invem.errors import PluginError

__all__ = ["settings_unchanged"]

_RANDOM = "the global random state"


@contextlib.contextmanager
def settings_unchanged(name: str | Callable[[], str], random: bool = True) -> Iterator[None]:
    """Refuses a component that changes a setting of PyTorch for the whole process.

    A changed setting is put back first, so that it does no harm to anything else. The settings are
    the default type of numbers, the number of threads, whether gradients are computed, and the
    global random state. PyTorch is not imported for this.

    Args:
        name: The component in words, or what returns it.
        random: Whether the global random state is compared too. It is in the main thread alone:
            beside another thread that draws, nobody could say who changed it.

    Raises:
        PluginError: If a setting is another one afterwards.
    """
    before = _settings(random)
    try:
        yield
    finally:
        changed = _put_back(before, _settings(random))
    if changed:
        words = name if isinstance(name, str) else name()
        raise PluginError(
            f"{words}: it changed {' and '.join(changed)} of PyTorch for the whole process; take"
            " that out of it, and pass types and random generators explicitly"
        )


def _settings(random: bool) -> dict[str, Any]:
    """Returns the settings by name; those of a PyTorch that is not imported are its own."""
    torch: Any = sys.modules.get("torch")
    if not hasattr(torch, "set_num_threads"):
        return {}
    found = {
        "the default dtype": torch.get_default_dtype(),
        "the number of threads": torch.get_num_threads(),
        "gradients on or off": torch.is_grad_enabled(),
    }
    if random and threading.current_thread() is threading.main_thread():
        found[_RANDOM] = torch.get_rng_state()
    return found


def _put_back(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Puts back each setting that was changed; returns their names, with the values."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not after:
        return []
    # A process begins with float32 where the component was the first to import PyTorch.
    before = before or {"the default dtype": torch.float32}
    put = {
        "the default dtype": torch.set_default_dtype,
        "the number of threads": torch.set_num_threads,
        "gradients on or off": torch.set_grad_enabled,
        _RANDOM: torch.set_rng_state,
    }
    changed = []
    for name, old in before.items():
        new = after[name]
        if torch.equal(old, new) if name == _RANDOM else old == new:
            continue
        put[name](old)
        values = "" if name == _RANDOM else f" (from {old} to {new})"
        changed.append(name + values)
    return changed
