"""The page's parts that need no night: charts from numbers, and nothing that a text could break."""

import xml.etree.ElementTree as ET

from editing.evals.compare import Comparison
from tasks.night.plan import NightWork
from tasks.report.charts import drops_chart, scores_chart, trials_chart
from tasks.report.content import Scores

NAME = "zsre.question.generated"


def marks(svg, tag):
    return ET.fromstring(str(svg)).findall(tag)


def scores(**more):
    content = {
        "metric": NAME,
        "n": 200,
        "candidate": 0.9,
        "whole": None,
        "champion": 0.95,
        "base": 1.0,
        "floor": 0.8,
        "bounds": {"champion": 0.9},
        "failed": (),
        "failed_whole": False,
    }
    return Scores(**content | more)


def test_scores_stand_at_their_place_and_say_what_fails():
    chart = scores_chart([scores(), scores(candidate=0.5, failed=("below",)), scores(candidate=None, floor=None)])
    texts = [text.text for text in marks(chart, "text")]
    assert "90.0% of 200" in texts
    assert "50.0% of 200  fails" in texts
    assert "not asked tonight" in texts
    base, champion, candidate = (float(dot.get("cx")) for dot in marks(scores_chart([scores()]), "circle"))
    assert base - champion == champion - candidate > 0
    with_all = marks(scores_chart([scores(whole=0.3)]), "circle")
    assert len(with_all) == 4
    assert float(with_all[0].get("cx")) < candidate


def test_drops_and_trials():
    row = Comparison(
        metric="<b>&",
        test="",
        n=100,
        candidate=0.8,
        reference=0.9,
        drop=0.1,
        drop_bound=0.15,
        margin=0.05,
        p_inferior=0.001,
        p_non_inferior=0.9,
        losses=10,
        gains=0,
        detectable=0.05,
        lost_items=(),
    )
    texts = [text.text for text in marks(drops_chart([("champion", row)], 0.05), "text")]
    assert texts[-2:] == ["<b>& vs champion", "+0.100, at most +0.150"]
    bars = marks(trials_chart([(0, True), (20, False), (10, True)]), "rect")
    heights = [float(bar.get("height")) for bar in bars]
    assert heights[0] < heights[2] < heights[1]
    assert bars[1].get("fill") != bars[2].get("fill")


def test_a_part_of_a_night_is_the_same_night_under_its_own_key():
    work = NightWork(
        key="night",
        as_of="2018-01-28T00:00:00+00:00",
        method="coachhook",
        parent=None,
        batches=(("a", "b"), ("c",), ("d", "e")),
        retract=(("r", "x"),),
        known=("k",),
        superseded=2,
        nothing_to_retract=0,
    )
    part = work.only({"e", "a", "d"})
    assert part.batches == (("a",), ("d", "e"))
    assert (part.origin, part.left_out) == ("night", ("b", "c"))
    assert part.considered == work.considered == 9
    assert part.key not in (work.key, work.only({"a"}).key)
    smaller = part.only({"a", "d"})
    assert (smaller.key, smaller.origin) == (work.only({"a", "d"}).key, "night")
    assert smaller.left_out == ("b", "c", "e")
    assert NightWork.from_dict(part.to_dict()) == part
    old = {name: value for name, value in work.to_dict().items() if name not in ("origin", "left_out")}
    assert NightWork.from_dict(old) == work
