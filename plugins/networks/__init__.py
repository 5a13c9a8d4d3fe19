"""The networks of invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_networks() -> dict[str, str]:
    return {
        "convnet": "invem_plugins.networks.convnet:ConvNet",
        "mlp": "invem_plugins.networks.mlp:MLP",
        "unet": "invem_plugins.networks.unet:UNet",
    }
