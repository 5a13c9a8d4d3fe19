"""The data sets of invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_datasets() -> dict[str, str]:
    return {
        "cifar10": "invem_plugins.datasets.cifar10:cifar10",
        "digits": "invem_plugins.datasets.digits:digits",
        "fashion-mnist": "invem_plugins.datasets.fashion_mnist:fashion_mnist",
        "folder": "invem_plugins.datasets.folder:folder",
        "frames": "invem_plugins.datasets.frames:frames",
        "measurements": "invem_plugins.datasets.measurements:measurements",
        "smooth-manifold": "invem_plugins.datasets.curve:smooth_manifold",
        "synthetic": "invem_plugins.datasets.synthetic:synthetic",
    }
