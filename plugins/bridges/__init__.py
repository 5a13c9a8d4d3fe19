"""Operators and networks of other libraries.

Each library is imported on use, and needs an extra of invem.
"""

from invem import hookimpl


@hookimpl
def invem_operators() -> dict[str, str]:
    return {"deepinv": "invem_plugins.bridges.deepinv:physics"}


@hookimpl
def invem_networks() -> dict[str, str]:
    return {
        "azula": "invem_plugins.bridges.azula:azula",
        "deepinv": "invem_plugins.bridges.deepinv:denoiser",
        "diffusers": "invem_plugins.bridges.diffusers:diffusers",
    }
