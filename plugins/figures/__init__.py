"""Figures of the report that come with invem."""

from invem import hookimpl


@hookimpl
def invem_figures() -> dict[str, str]:
    return {
        "metrics": "invem_plugins.figures.metrics:Metrics",
        "loss": "invem_plugins.figures.loss:TrainingLoss",
    }
