import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm

from editing.errors import PolicyError, SuiteError
from editing.evals.compare import (
    FEWEST_RECORDS,
    _graded,
    bootstrap,
    compare,
    design_effect,
    detectable_drop,
    detectable_shift,
    holm,
    items_needed,
    mcnemar,
    tango,
    tango_beyond,
    tango_bound,
)
from editing.evals.gate import Decision, Verdict, decide
from editing.evals.policy import Policy
from editing.evals.probes import Probe, ProbeSuite
from editing.evals.report import EvalReport, ItemOutcome, SuiteRecord, content_digest

STEADY = settings(max_examples=40, deadline=None)  # a busy machine is no failure
QUIZ, TASTE = "quiz.accuracy.option_likelihood", "taste.magnitude.likelihood"


def report(digest="base", quiz=(), taste=(), of_record=lambda i: "", **more):
    """A report over two suites: `quiz` of right and wrong items, `taste` of graded ones; `of_record` names records."""
    outcomes = tuple(
        ItemOutcome(
            suite=suite,
            metric=metric,
            protocol=protocol,
            item_id=f"{i:04}",
            prompt=f"prompt {i} | of {suite}",
            expected="yes",
            got="yes" if score else "no",
            score=float(score),
            binary=suite == "quiz",
            record=of_record(i),
        )
        for suite, metric, protocol, scores in (
            ("quiz", "accuracy", "option_likelihood", quiz),
            ("taste", "magnitude", "likelihood", taste),
        )
        for i, score in enumerate(scores)
    )
    suites = {
        name: SuiteRecord(name=name, version="1", digest=f"{name}-digest", items=len(scores), seconds=1.0)
        for name, scores in (("quiz", quiz), ("taste", taste))
    }
    content = {
        "model_digest": digest,
        "base_fingerprint": "base",
        "tokenizer_hash": "tokenizer",
        "model_id": "model",
        "method": None,
        "batch_size": 64,
        "dtype": "float32",
        "device": "cpu",
        "packages": {"torch": "2"},
        "seeds": {},
        "created_at": "2020-01-01T00:00:00+00:00",
        "suites": suites,
        "outcomes": outcomes,
    }
    return EvalReport(**content | more)


counts = st.integers(0, 40)


@STEADY
@given(counts, counts)
def test_mcnemar_is_the_sign_test_on_discordant_items(losses, gains):
    total = losses + gains
    expected = binomtest(losses, total, 0.5, alternative="greater").pvalue if total else 1.0
    assert mcnemar(losses, gains) == pytest.approx(expected)


@STEADY
@given(counts, counts, st.integers(0, 300), st.floats(0.005, 0.5))
def test_tango_orders_as_a_test_must(losses, gains, ties, margin):
    n = losses + gains + ties
    if n == 0:
        return
    p = tango(losses, gains, n, margin)
    assert 0 <= p <= 1
    assert tango(losses, gains, n, min(margin * 1.2, 0.6)) <= p + 1e-9
    assert tango(losses + 1, gains, n + 1, margin) >= p - 1e-9
    if losses <= gains and n > 1:
        assert p < 0.5
    bound = tango_bound(losses, gains, n, 0.05)
    assert bound >= (losses - gains) / n - 1e-9
    assert (bound < margin) == (p < 0.05) or abs(bound - margin) < 1e-6


def test_tango_agrees_with_its_closed_form_and_a_published_interval():
    # No item differs: the statistic is -sqrt(n d / (1 - d)).
    assert tango(0, 0, 200, 0.02) == pytest.approx(norm.cdf(-((200 * 0.02 / 0.98) ** 0.5)))
    # Bentur et al. 2009 (1 and 7 of 21 pairs differ): 95% interval -0.517 to -0.026 (Fagerland, Lydersen, Laake 2014).
    assert tango_bound(1, 7, 21, 0.025) == pytest.approx(-0.026, abs=5e-4)
    assert -tango_bound(7, 1, 21, 0.025) == pytest.approx(-0.517, abs=5e-4)


def test_the_tests_keep_their_level():
    rng = np.random.default_rng(0)
    n, margin, shared = 400, 0.05, 0.04
    probabilities = [shared / 2 + margin, shared / 2, 1 - shared - margin]
    draws = rng.multinomial(n, probabilities, size=3000)
    accepted = np.mean([tango(b, c, n, margin) < 0.05 for b, c, _ in draws])
    assert accepted == pytest.approx(0.05, abs=0.015)
    even = rng.multinomial(n, [shared / 2, shared / 2, 1 - shared], size=3000)
    assert np.mean([mcnemar(b, c) < 0.05 for b, c, _ in even]) <= 0.05


@STEADY
@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p_values):
    adjusted = holm(p_values)
    assert list(adjusted) == list(p_values)
    assert all(p_values[name] <= adjusted[name] <= 1 for name in p_values)
    ranked = sorted(p_values, key=lambda name: (p_values[name], name))
    assert [adjusted[name] for name in ranked] == sorted(adjusted.values())
    assert adjusted[ranked[0]] == min(1.0, len(p_values) * p_values[ranked[0]])


@STEADY
@given(st.integers(1, 5000), st.floats(0, 0.3), st.floats(0.01, 0.2), st.floats(0.6, 0.95))
def test_a_detectable_drop_shrinks_with_items_and_grows_with_noise(n, discordance, alpha, power):
    setting = {"alpha": alpha, "power": power}
    drop = detectable_drop(n, discordance=discordance, **setting)
    assert 0 < drop <= 1
    assert detectable_drop(2 * n, discordance=discordance, **setting) <= drop
    assert detectable_drop(n, discordance=discordance + 0.1, **setting) >= drop - 1e-9
    if drop < 1:
        assert items_needed(drop + 1e-9, discordance=discordance, **setting) <= n


def test_a_detectable_drop_is_detected_as_often_as_it_says():
    n, discordance = 600, 0.1
    drop = detectable_drop(n, alpha=0.05, power=0.8, discordance=discordance)
    assert drop == pytest.approx(0.0321, abs=2e-4)
    losses, gains = (discordance + drop) / 2, (discordance - drop) / 2
    draws = np.random.default_rng(1).multinomial(n, [losses, gains, 1 - discordance], size=3000)
    found = np.mean([mcnemar(b, c) < 0.05 for b, c, _ in draws])
    assert found == pytest.approx(0.8, abs=0.08)  # the exact test is a little shy of its approximation
    even = np.random.default_rng(2).multinomial(n, [discordance / 2, discordance / 2, 1 - discordance], size=3000)
    assert np.mean([tango(b, c, n, drop) < 0.05 for b, c, _ in even]) == pytest.approx(0.8, abs=0.05)


def test_the_bootstrap_is_seeded_and_centred():
    drops = np.random.default_rng(2).normal(0.1, 1.0, 500).tolist()
    means = bootstrap(drops, seed=3)
    assert np.array_equal(means, bootstrap(drops, seed=3))
    assert not np.array_equal(means, bootstrap(drops, seed=4))
    assert means.mean() == pytest.approx(np.mean(drops), abs=0.01)
    assert means.std() == pytest.approx(np.std(drops) / 500**0.5, rel=0.1)


def test_a_drop_is_tested_against_its_margin():
    """16 lost of 300: no chance finding, and no drop beyond 0.05 either."""
    result = compare(report("new", quiz=quiz(16, 300)), report("old", quiz=quiz(0, 300)), {QUIZ: 0.05})[QUIZ]
    assert result.drop > result.margin
    assert result.p_inferior == pytest.approx(mcnemar(16, 0), rel=1e-9)
    assert result.p_inferior < 2e-5
    assert result.p_beyond == pytest.approx(0.395, abs=0.02)
    assert not result.is_inferior(0.05)
    assert not result.is_non_inferior(0.05)
    assert tango_beyond(40, 0, 300, 0.05) == pytest.approx(1 - tango(40, 0, 300, 0.05))
    assert tango_beyond(10, 0, 300, 0.05) == 1.0


def alike(rng, records, size, share, even=False):
    """Drops of records whose items all go together: `share` lose, and with `even` as many gain."""
    kinds = rng.choice([1.0, -1.0, 0.0], size=records, p=[share, share if even else 0.0, 1 - share * (1 + even)])
    return np.repeat(kinds, size).tolist(), np.repeat(np.arange(records), size).tolist()


def test_items_of_one_record_do_not_count_as_many():
    drops, records = alike(np.random.default_rng(0), 200, 10, 0.1, even=True)
    assert design_effect(drops, records) == pytest.approx(10)
    assert design_effect(drops, range(2000)) == 1.0
    loose = np.random.default_rng(1).choice([1.0, 0.0], size=2000, p=[0.1, 0.9]).tolist()
    assert design_effect(loose, records) < 2
    assert design_effect([0.0] * 2000, records) == 10  # none disagrees: nothing tells how like they are
    spread = bootstrap(drops, seed=0, records=records).std()
    assert spread == pytest.approx(np.std(drops) / 200**0.5, rel=0.1)
    assert bootstrap(drops, seed=0).std() < spread / 2


def test_the_errors_of_the_first_kind_stay_where_they_should_with_items_that_go_together():
    rng, margin, size, tries = np.random.default_rng(3), 0.05, 10, 400

    def tested(share, even=False):
        drops, records = alike(rng, 100, size, share, even)
        deff = design_effect(drops, records)
        losses, gains = (sum(sign * d > 0 for d in drops) / deff for sign in (1, -1))
        return losses, gains, len(drops) / deff

    worse = np.mean([mcnemar(*tested(0.05, even=True)[:2]) < 0.05 for _ in range(tries)])
    beyond = np.mean([tango_beyond(*tested(margin), margin) < 0.05 for _ in range(tries)])
    within = np.mean([tango(*tested(margin), margin) < 0.05 for _ in range(tries)])
    assert worse < 0.08
    assert beyond < 0.08
    assert within < 0.08


def test_records_reach_the_comparison():
    lost = [0] * 10 + [1] * 290
    old = report("old", quiz=[1] * 300)
    alone = compare(report("new", quiz=lost), old, {QUIZ: 0.1})[QUIZ]
    together = compare(report("new", quiz=lost, of_record=lambda i: str(i // 10)), old, {QUIZ: 0.1})[QUIZ]
    assert (alone.records, together.records) == (300, 30)
    assert alone.p_inferior == pytest.approx(mcnemar(10, 0))
    assert together.p_inferior == pytest.approx(0.5)
    assert alone.is_non_inferior(0.05)
    assert not together.is_non_inferior(0.05)


def test_a_few_graded_items_show_nothing():
    for n in (1, FEWEST_RECORDS - 1):
        result = compare(report("new", taste=[0.1] * n), report("old", taste=[0.9] * n), {TASTE: 0.02})[TASTE]
        assert (result.p_inferior, result.p_beyond, result.p_non_inferior) == (1.0, 1.0, 1.0)
        assert result.drop_bound == 1.0
    assert detectable_shift([0.3], alpha=0.05, power=0.8) == 1.0
    two = detectable_shift([0.0, 0.2], alpha=0.05, power=0.8)
    assert two == pytest.approx((norm.ppf(0.95) + norm.ppf(0.8)) * np.std([0.0, 0.2], ddof=1) / 2**0.5)


def test_a_few_graded_records_err_no_more_often_than_many():
    rng, margin, tries = np.random.default_rng(1), 0.05, 200
    for records, size in ((FEWEST_RECORDS, 1), (10, 4)):
        of = np.repeat(np.arange(records), size).astype(str)
        wrong = {"p_beyond": 0.0, "p_non_inferior": 0.0}
        for _ in range(tries):
            drops = np.repeat(rng.normal(margin, 0.1, records), size)
            row = _graded(drops.tolist(), of.tolist(), margin, alpha=0.05, power=0.8, seed=0)
            wrong = {name: share + (row[name] < 0.05) / tries for name, share in wrong.items()}
        assert max(wrong.values()) <= 0.08, (records, wrong)


def test_names_of_records_do_not_change_the_digest_of_reports_that_have_none():
    plain = report("new", quiz=[1, 0])
    rows = [asdict(outcome) for outcome in plain.outcomes]
    assert {row.pop("record") for row in rows} == {""}
    assert plain.digest == content_digest(rows)
    assert report("new", quiz=[1, 0], of_record=str).digest != plain.digest


def test_compare_counts_pairs_and_names_the_lost():
    candidate = report("new", quiz=[1] * 96 + [0] * 4)
    reference = report("old", quiz=[0] + [1] * 99)
    result = compare(candidate, reference, {QUIZ: 0.1})[QUIZ]
    assert (result.losses, result.gains, result.n) == (4, 1, 100)
    assert result.drop == pytest.approx(0.03)
    assert result.lost_items == ("0096", "0097", "0098", "0099")
    assert result.p_inferior == pytest.approx(mcnemar(4, 1))
    assert result.drop < result.drop_bound < 0.1
    assert result.is_non_inferior(0.05)
    assert not result.is_inferior(0.05)


def test_graded_metrics_are_compared_by_bootstrap():
    old = np.random.default_rng(0).normal(0.5, 0.2, 300)
    same = compare(report("new", taste=old), report("old", taste=old), {TASTE: 0.02})[TASTE]
    worse = compare(report("new", taste=old - 0.1), report("old", taste=old), {TASTE: 0.02})[TASTE]
    assert (same.test, same.is_non_inferior(0.05), same.is_inferior(0.05)) == ("paired bootstrap", True, False)
    assert (worse.is_non_inferior(0.05), worse.is_inferior(0.05)) == (False, True)
    assert worse.drop == pytest.approx(0.1)
    assert worse.p_inferior > 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 32}, "batch size is 64 and 32"),
        ({"base_fingerprint": "another"}, "base is base and another"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"packages": {"torch": "3"}}, "packages"),
    ],
)
def test_unlike_reports_are_not_compared(change, named):
    ours = report(quiz=[1, 1])
    with pytest.raises(SuiteError, match=named):
        compare(ours, replace(ours, **change), {QUIZ: 0.1})


def test_unlike_suites_and_items_are_not_compared():
    ours = report(quiz=[1, 1])
    for field in ("version", "digest"):
        suites = {**ours.suites, "quiz": replace(ours.suites["quiz"], **{field: "2"})}
        with pytest.raises(SuiteError, match="cannot be compared: suite"):
            compare(ours, replace(ours, suites=suites), {QUIZ: 0.1})
    with pytest.raises(SuiteError, match="item '0001' is in one report only"):
        compare(ours, replace(ours, outcomes=ours.outcomes[:1]), {QUIZ: 0.1})
    with pytest.raises(SuiteError, match="no metric"):
        compare(ours, ours, {TASTE: 0.1})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({}, "no floor and no margin"),
        ({"floors": {"mmlu": 0.5}}, r"write suite\.metric\.protocol"),
        ({"floors": {QUIZ: 1.5}}, r"is 1\.5"),
        ({"floors": {QUIZ: float("nan")}}, "is nan"),
        ({"champion_margins": {QUIZ: 0.0}}, r"margin of .* is 0\.0"),
        ({"base_margins": {QUIZ: -0.1}}, r"is -0\.1"),
        ({"floors": {QUIZ: 0.5}, "alpha": 0.6}, r"alpha is 0\.6"),
        ({"floors": {QUIZ: 0.5}, "power": 0.4}, r"power is 0\.4"),
        ({"floors": {QUIZ: 0.5}, "discordance": 2}, "discordance is 2"),
        ({"floors": {QUIZ: "0.5"}}, r"is '0\.5'; give a share"),
        ({"floors": {QUIZ: True}}, r"is True; give a share"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(content, complaint):
    with pytest.raises(PolicyError, match=complaint):
        Policy(**content)


def probe_suite(n, name="quiz"):
    items = tuple(Probe(item_id=str(i), metric="recall", prompt="p", answers=("a",)) for i in range(n))
    return ProbeSuite(name=name, version="1", items=items)


DEFAULT = {"floors": {QUIZ: 0.7, TASTE: 0.2}, "champion_margins": {QUIZ: 0.05}, "base_margins": {QUIZ: 0.05}}


def test_a_users_table_adds_to_the_defaults_and_false_takes_away():
    assert Policy.changed(DEFAULT, {}) == Policy(**DEFAULT)
    changed = Policy.changed(DEFAULT, {"floors": {"quiz.recall.generated": 0.6, TASTE: False}, "alpha": 0.1})
    assert changed.floors == {QUIZ: 0.7, "quiz.recall.generated": 0.6}
    assert (changed.champion_margins, changed.base_margins, changed.alpha) == ({QUIZ: 0.05}, {QUIZ: 0.05}, 0.1)
    assert Policy.changed(DEFAULT, {"base_margins": False}).base_margins == {}
    assert Policy.changed(DEFAULT, {"floors": {QUIZ: 0}}).floors == {QUIZ: 0, TASTE: 0.2}
    with pytest.raises(PolicyError, match=r"no 'flors'; did you mean floors\?"):
        Policy.changed(DEFAULT, {"flors": {}})
    with pytest.raises(PolicyError, match=r"floors is 0\.6; write a table"):
        Policy.changed(DEFAULT, {"floors": 0.6})
    with pytest.raises(PolicyError, match="is True"):
        Policy.changed(DEFAULT, {"floors": {QUIZ: True}})


def test_a_metric_that_nothing_measures_is_named():
    known = [f"edits.{metric}.generated" for metric in ("reliability", "locality")]
    suites = [probe_suite(1000), probe_suite(0, "edits")]
    Policy(floors={known[0]: 0.6, "quiz.recall.generated": 0.5}).check(suites, known)
    with pytest.raises(PolicyError, match=r"reliabilty.*did you mean edits\.reliability\.generated\?"):
        Policy(floors={"edits.reliabilty.generated": 0.6}).check(suites, known)
    with pytest.raises(PolicyError, match=r"quiz\.recal\.generated, which nothing.*did you mean quiz\.recall"):
        Policy(champion_margins={"quiz.recal.generated": 0.5}).check(suites, known)


def test_a_suite_too_small_for_its_margin_is_said_before_the_night():
    policy = Policy(champion_margins={"quiz.recall.generated": 0.05}, base_margins={"quiz.recall.generated": 0.03})
    policy.check([probe_suite(1000)])
    with pytest.raises(
        PolicyError, match=r"50 items, which detect a drop of 0\.1\d+, not its margin of 0\.03"
    ) as error:
        policy.check([probe_suite(50)])
    needed = int(str(error.value).split("give it ")[1].split()[0])
    policy.check([probe_suite(needed)])
    with pytest.raises(PolicyError):
        policy.check([probe_suite(needed - 1)])
    with pytest.raises(PolicyError, match="0 items"):
        policy.check([probe_suite(0)])
    with pytest.raises(PolicyError, match="no suite 'quiz' is evaluated; the suites are test"):
        policy.check([probe_suite(1000, "test")])


POLICY = Policy(floors={QUIZ: 0.7}, champion_margins={QUIZ: 0.05, TASTE: 0.05}, base_margins={QUIZ: 0.1})
FLAT = [0.5] * 400


def quiz(wrong, n=400):
    return [0] * wrong + [1] * (n - wrong)


def judge(candidate, champion=20, base=20, policy=POLICY, taste=FLAT):
    return decide(
        policy,
        report("candidate", quiz=quiz(candidate), taste=taste),
        None if champion is None else report("champion", quiz=quiz(champion), taste=FLAT),
        report("base", quiz=quiz(base), taste=FLAT),
    )


def test_an_equal_candidate_is_promoted():
    verdict = judge(20)
    assert verdict.decision is Decision.PROMOTE
    assert verdict.reasons == ("1 floors met and 3 comparisons within their margins",)
    assert judge(20, champion=None).decision is Decision.PROMOTE
    assert judge(20, champion=None).against_champion == ()


def test_a_missed_floor_rejects_and_shows_examples():
    verdict = judge(130, champion=130, base=130)
    assert verdict.decision is Decision.REJECT
    assert verdict.reasons[0].startswith(f"{QUIZ} is 0.675 on 400 items, below its floor of 0.7")
    assert len(verdict.examples) == 10


def test_a_shown_drop_rejects_and_an_unsettled_one_holds():
    shown, unsettled = judge(60), judge(36)
    assert shown.decision is Decision.REJECT
    assert "drops by 0.100 against the champion (margin 0.05, 40 lost and 0 gained of 400" in shown.reasons[0]
    assert {o.item_id for o in shown.examples} == {f"{i:04}" for i in range(20, 25)}
    assert unsettled.decision is Decision.HOLD
    assert "may drop by up to 0.0" in unsettled.reasons[0]


def test_a_drop_from_the_base_that_grew_night_by_night_is_seen():
    verdict = judge(80, champion=78)
    assert verdict.decision is Decision.REJECT
    assert "against the base" in verdict.reasons[0]
    assert len(verdict.reasons) == 1


def test_an_unmeasured_floor_is_said_and_a_missing_suite_is_an_error():
    quiet = Policy(floors={"quiz.recall.generated": 0.9}, champion_margins={QUIZ: 0.05})
    verdict = judge(20, policy=quiet)
    assert verdict.decision is Decision.HOLD
    assert 'take the floor away: floors = { "quiz.recall.generated" = false }' in verdict.reasons[0]
    assert not any(verdict.failed.values())
    asked = [report(name, quiz=quiz(20), taste=FLAT) for name in ("candidate", "champion", "base")]
    assert decide(quiet, *asked, required=()).decision is Decision.PROMOTE
    assert "quiz.recall.generated was not measured: no such item tonight" in verdict.reasons
    with pytest.raises(PolicyError, match="no suite 'quizz' is evaluated"):
        judge(20, policy=Policy(floors={"quizz.recall.generated": 0.9}))


def test_a_floor_of_edits_holds_only_where_there_was_a_fact_to_ask():
    floor = Policy(floors={"edits.locality.generated": 0.9}, champion_margins={QUIZ: 0.05})
    for items, decision in ((0, Decision.PROMOTE), (3, Decision.HOLD)):
        edits = SuiteRecord(name="edits", version="3", digest="e", items=items, seconds=0.0)
        candidate = report("candidate", quiz=quiz(20))
        candidate = replace(candidate, suites={**candidate.suites, "edits": edits})
        others = (report(name, quiz=quiz(20)) for name in ("champion", "base"))
        assert decide(floor, candidate, *others).decision is decision


@STEADY
@given(st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
def test_a_verdict_is_deterministic_sound_and_round_trips(candidate, champion, base):
    verdict = judge(candidate, champion, base)
    assert verdict == judge(candidate, champion, base)
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict
    if verdict.decision is Decision.PROMOTE:
        assert candidate <= 120
        assert candidate - champion <= 20
        assert candidate - base <= 40
    text = verdict.to_markdown()
    assert verdict.decision in text.lower()
    assert all(reason in text for reason in verdict.reasons)
    if candidate <= min(champion, base, 120):
        assert verdict.decision is Decision.PROMOTE


def test_the_page_shows_the_numbers():
    text = judge(60).to_markdown()
    assert "| quiz.accuracy.option_likelihood | 0.850 | 0.7 | 400 | ok |" in text
    assert "40 / 0 of 400" in text
    assert "**worse**" in text
    assert "prompt 20 \\| of quiz" in text


@pytest.mark.parametrize(
    ("outcomes", "complaint"),
    [
        (lambda o: (o, o), "twice"),
        (lambda o: (replace(o, score=float("nan")),), "scores are finite"),
        (lambda o: (replace(o, suite="other"),), "has no record"),
    ],
)
def test_a_report_that_contradicts_itself_is_refused(outcomes, complaint):
    good = report(quiz=[1])
    with pytest.raises(SuiteError, match=complaint):
        replace(good, outcomes=outcomes(good.outcomes[0]))


def test_champion_and_base_are_one_family_of_tests():
    verdict = judge(60)
    shown = {("champion", c.metric): c for c in verdict.against_champion}
    shown |= {("base", c.metric): c for c in verdict.against_base}
    raw = mcnemar(40, 0)
    assert shown["champion", QUIZ].p_inferior == pytest.approx(3 * raw)
    assert shown["base", QUIZ].p_inferior == pytest.approx(3 * raw)
    assert shown["champion", QUIZ].p_beyond == pytest.approx(3 * tango_beyond(40, 0, 400, 0.05))
    assert shown["base", QUIZ].p_beyond == 1.0
    assert shown["champion", TASTE].p_inferior == 1.0


def test_every_metric_says_what_drop_it_can_show_and_what_failed_can_be_judged_alone():
    policy = replace(POLICY, base_margins={})
    shifted = (np.asarray(FLAT) - np.random.default_rng(0).normal(0.0, 0.1, 400)).tolist()
    verdict = judge(130, policy=policy, taste=shifted)
    found = {row.metric: row for row in verdict.sensitivity}
    assert found[QUIZ].detectable == detectable_drop(400, alpha=0.05, power=0.8, discordance=policy.discordance)
    assert found[TASTE].detectable == pytest.approx((norm.ppf(0.95) + norm.ppf(0.8)) * 0.1 / 20, rel=0.1)
    assert (found[QUIZ].n, found[QUIZ].margin) == (400, 0.05)
    assert f"| {QUIZ} | 400 |" in verdict.to_markdown()
    unbound = judge(20, policy=Policy(floors={QUIZ: 0.7})).sensitivity
    assert {row.metric: row.margin for row in unbound} == {QUIZ: None, TASTE: None}

    assert verdict.failed == {"floors": (QUIZ,), "champion_margins": (QUIZ,), "base_margins": ()}
    part = policy.part(verdict.failed)
    assert part == Policy(floors={QUIZ: 0.7}, champion_margins={QUIZ: 0.05})
    assert part.metrics == (QUIZ,)
    assert judge(20, policy=part).decision is Decision.PROMOTE
    assert judge(20).failed == {"floors": (), "champion_margins": (), "base_margins": ()}
    before = {row.metric: row for row in policy.sensitivity([probe_suite(50), probe_suite(0, "empty")])}
    assert before["quiz.recall.generated"].n == 50
    assert not any(metric.startswith("empty") for metric in before)
