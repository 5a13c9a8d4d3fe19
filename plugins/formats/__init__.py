"""The file formats of invem."""

from invem import hookimpl


@hookimpl
def invem_formats() -> dict[str, str]:
    return {
        "image-folder": "invem_plugins.formats.image_folder:ImageFolder",
        "npz": "invem_plugins.formats.npz:Npz",
        "safetensors": "invem_plugins.formats.safetensors:Safetensors",
    }
