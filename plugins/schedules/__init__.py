"""The noise schedules of invem, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_schedules() -> dict[str, str]:
    return {
        "geometric": "invem.schedule:Geometric",
        "karras": "invem.schedule:Karras",
        "vp": "invem_plugins.schedules.vp:VP",
    }
