"""The formats of files of frames: those of cameras, microscopes, scanners and telescopes."""

from invem import hookimpl


@hookimpl
def invem_formats() -> dict[str, str]:
    return {"frames": "invem_plugins.frames.frames:Frames"}
