"""Posterior samplers that come with invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_samplers() -> dict[str, str]:
    return {
        "dps": "invem_plugins.samplers.dps:DPS",
        "mmps": "invem_plugins.samplers.mmps:MMPS",
    }
