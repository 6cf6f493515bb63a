import io

import pytest

from tasks.plots import retention_by_age, scope_margins, success_by_night

ROW = {"reliability": 1.0, "generality": 0.8, "locality": None, "retention": None}


@pytest.mark.parametrize(
    "figure",
    [
        success_by_night([{"night": f"2018-{month:02}-28", **ROW} for month in range(1, 13)]),
        success_by_night([{"night": "2018-01-31", **ROW}]),
        retention_by_age({"000-001 days": (1.0, 4), "002-007 days": (0.5, 2)}),
        scope_margins({"edit prompts": [3.0, 4.0], "locality prompts": [-0.1]}),
        scope_margins({"edit prompts": [3.0, float("-inf")]}),
    ],
    ids=["year", "one night", "retention", "scores", "no threshold"],
)
def test_plots_render(figure):
    image = io.BytesIO()
    figure.savefig(image, format="png")
    assert image.getbuffer().nbytes > 5000
