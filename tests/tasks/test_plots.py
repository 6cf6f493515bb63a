import io

import pytest

from editing.evals.retention import Asked
from editing.evals.retention import forgetting_curve as forgetting_points
from tasks.plots import forgetting_curve, over_nights, retention_by_age, scope_margins, success_by_night

ROW = {"reliability": 1.0, "generality": 0.8, "locality": None, "retention": None}


@pytest.mark.parametrize(
    "figure",
    [
        success_by_night([{"night": f"2018-{month:02}-28", **ROW} for month in range(1, 13)]),
        success_by_night([{"night": "2018-01-31", **ROW}]),
        retention_by_age({"000-001 days": (1.0, 4), "002-007 days": (0.5, 2)}),
        forgetting_curve(forgetting_points([Asked(0, True), Asked(8, True), Asked(8, False), Asked(9000, True)])),
        over_nights("Gauges", [("2018-01-31", {"a": 1.0}), ("2018-02-28", {"a": 0.8, "b": 2.0})], "value"),
        scope_margins({"edit prompts": [3.0, 4.0], "locality prompts": [-0.1]}),
        scope_margins({"edit prompts": [3.0, float("-inf")]}),
    ],
    ids=["year", "one night", "retention", "forgetting", "gauges", "scores", "no threshold"],
)
def test_plots_render(figure):
    image = io.BytesIO()
    figure.savefig(image, format="png")
    assert image.getbuffer().nbytes > 5000
