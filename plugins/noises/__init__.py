"""Noise laws that come with invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_noises() -> dict[str, str]:
    return {
        "gaussian": "invem_plugins.noises.gaussian:gaussian",
    }
