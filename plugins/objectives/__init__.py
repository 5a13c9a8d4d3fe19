"""M-step objectives that come with invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_objectives() -> dict[str, str]:
    return {
        "dsm": "invem_plugins.objectives.dsm:DSM",
        "gaussian-moments": "invem_plugins.objectives.gaussian_moments:GaussianMoments",
    }
