"""The training loss of every round."""

import math

from invem import report

_POINTS = 800


class TrainingLoss(report.Figure):
    """The logged training loss of all rounds in order; long runs are averaged over neighbours."""

    title = "Training loss"
    caption = (
        f"All logged values in order; of more than {_POINTS}, neighbours are averaged, and the axis"
        " is logarithmic where every value is positive."
    )

    def draw(self, run: report.ReportData) -> str | None:
        """Returns one chart; None without a finite loss."""
        width = math.ceil(len(run.losses) / _POINTS)
        rounds, values = [], []
        for begin in range(0, len(run.losses), width or 1):
            part = run.losses[begin : begin + width]
            finite = [loss.value for loss in part if math.isfinite(loss.value)]
            rounds.append(part[0].round)
            values.append(sum(finite) / len(finite) if finite else math.nan)
        return report.chart(rounds, values, log=True)
