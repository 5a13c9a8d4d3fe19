"""Forward operators that come with invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_operators() -> dict[str, str]:
    return {
        "gaussian-blur": "invem_plugins.operators.gaussian_blur:gaussian_blur",
        "identity": "invem_plugins.operators.identity:identity",
        "random-mask": "invem_plugins.operators.random_mask:random_mask",
        "random-projection": "invem_plugins.operators.random_projection:random_projection",
    }
