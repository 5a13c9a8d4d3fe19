"""The metrics of every evaluated round."""

import math

from invem import report


class Metrics(report.Figure):
    """One curve per metric over the evaluated rounds, with standard errors."""

    title = "Metrics over the run"
    caption = (
        "Bars are one standard error, the dashed line is the observations themselves, and the"
        " dotted line is the target of a metric that has one."
    )

    def draw(self, run: report.ReportData) -> dict[str, str] | None:
        """Returns one chart per metric that has a finite value."""
        pictures = {}
        for name, newest in run.metrics().items():
            found = [e.metrics.get(name) for e in run.evaluations]
            raw = run.observations.get(name)
            chart = report.chart(
                [e.round for e in run.evaluations],
                [math.nan if value is None else value.value for value in found],
                errors=[math.nan if value is None else value.sem for value in found],
                dashed=None if raw is None else raw.value,
                dotted=newest.target,
            )
            if chart is not None:
                pictures[newest.heading(name)] = chart
        return pictures or None
