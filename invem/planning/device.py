"""The devices of this machine."""

import torch

__all__ = ["available", "device_of"]


def available() -> list[str]:
    """Returns the names of the devices that a recipe can ask for on this machine."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    return found


def device_of(name: str) -> torch.device:
    """Returns the device that a recipe names.

    Args:
        name: "auto" or the name of a device.

    Raises:
        ValueError: If it is not there; the message says which ones are.
    """
    there = available()
    if name == "auto":
        return torch.device("cuda" if "cuda" in there else "cpu")
    if name not in there:
        raise ValueError(
            f"'{name}' is not available on this machine; there are: {', '.join(there)}"
            " (auto takes the fastest)"
        )
    return torch.device(name)
