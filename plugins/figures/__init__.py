"""The figures of invem's report."""

from invem import hookimpl


@hookimpl
def invem_figures() -> dict[str, str]:
    return {
        "metric-curves": "invem_plugins.figures.metrics:Metrics",
        "loss-curves": "invem_plugins.figures.loss:TrainingLoss",
    }
