"""Rules that end a phase before its last round, by the name that a recipe uses."""

from invem import hookimpl


@hookimpl
def invem_stops() -> dict[str, str]:
    return {
        "auto": "invem_plugins.stops.observation_distance:ObservationDistance",
        "never": "invem_plugins.stops.never:Never",
        "weight": "invem_plugins.stops.weight:LikelihoodWeight",
    }
