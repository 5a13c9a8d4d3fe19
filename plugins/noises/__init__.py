"""The noise models of invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_noises() -> dict[str, str]:
    return {
        "correlated-gaussian": "invem_plugins.noises.correlated_gaussian:correlated_gaussian",
        "gaussian": "invem_plugins.noises.gaussian:gaussian",
        "laplace": "invem_plugins.noises.laplace:laplace",
        "poisson": "invem_plugins.noises.poisson:poisson",
        "poisson-gaussian": "invem_plugins.noises.poisson_gaussian:poisson_gaussian",
        "salt-pepper": "invem_plugins.noises.salt_pepper:salt_pepper",
        "speckle": "invem_plugins.noises.speckle:speckle",
    }
