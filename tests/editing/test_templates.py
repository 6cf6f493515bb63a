import pytest
from hypothesis import given
from hypothesis import strategies as st

from editing.errors import FactError
from editing.facts import FactChange, fold
from editing.templates import count_slots, escape, fill, places, slot_start, slotted, tells, with_slot

texts = st.text(alphabet="ab{}\\ ", max_size=12)


@given(texts, texts, texts)
def test_a_text_comes_back_from_its_template(before: str, subject: str, after: str) -> None:
    text = before + subject + after
    template = with_slot(text, len(before), len(subject))
    assert count_slots(template) == 1
    assert fill(template, subject) == text
    assert slot_start(template) == len(before)
    assert count_slots(escape(text)) == 0
    assert fill(escape(text), "elsewhere") == text


@pytest.mark.parametrize(
    ("template", "slots", "filled"),
    [
        ("{} is", 1, "Rex is"),
        ("{{}} is", 1, "{Rex} is"),
        ("\\{} is", 0, "{} is"),
        ("\\\\{} is", 1, "\\Rex is"),
        ("a\\b {} is", 1, "a\\b Rex is"),
        ("{}{}", 2, "RexRex"),
    ],
)
def test_a_slot_and_braces_that_are_text(template: str, slots: int, filled: str) -> None:
    assert count_slots(template) == slots
    assert fill(template, "Rex") == filled


def test_a_subject_is_found_as_words_of_its_own() -> None:
    assert places("Niger", "Nigeria and Niger, Niger's") == [12, 19]
    assert places("北京", "在北京市") == [1]
    assert places("", "anything") == []
    found = slotted("Of José: José\u0301s", "José")
    assert found is not None
    assert found.template == "Of {}: José\u0301s"
    decomposed = slotted("Jose\u0301 Ávila plays for", "José Ávila")
    assert decomposed is not None
    assert (decomposed.template, decomposed.differently) == ("{} plays for", True)
    last = slotted("Rex came. Rex is", "Rex", last=True)
    assert last is not None
    assert (last.template, last.repeated) == ("Rex came. {} is", True)
    assert slotted("nothing of it", "Rex") is None


@pytest.mark.parametrize(
    ("text", "name", "told"),
    [
        ("Who leads Lindholm station?", "lindholm station", True),
        ("Who leads Vostok Station", "Lindholm station", False),
        ("the Quincy of whom I spoke, Josiah, Jr", "Josiah Quincy, Jr.", True),
        ("George G. Siebels, Jr", "Josiah Quincy, Jr.", False),
        ("Bundesautobahn 62", "Bundesautobahn 2", False),
        ("Ardens Rathaus", "Arden", True),
        ("Bearden", "Arden", False),
        ("Jose\u0301 Avila", "José Ávila", True),
        ("日本の首都東京は", "東京", True),
        ("日本の首都京都は", "東京", False),
        ("anything", "", True),
    ],
)
def test_a_text_tells_a_name_when_it_has_all_its_words(text: str, name: str, told: bool) -> None:
    assert tells(text, name) is told


def test_one_notion_of_what_is_the_same() -> None:
    assert fold("Jose\u0301") == fold("JOSÉ") == fold(" josé ")
    assert fold("New\u00a0York") == fold("new  york")
    assert fold("STRASSE") == fold("straße")


def test_a_time_outside_the_years_of_python_is_a_broken_fact() -> None:
    fields = {"subject": "a", "relation": "b", "target": "c", "prompt": "{} d", "source": "e"}
    with pytest.raises(FactError, match="effective_at 0001-01-01 00:00:00\\+05:00 of 'a' is outside the years"):
        FactChange.from_dict(
            {
                **fields,
                "operation": "assert",
                "target_old": None,
                "rephrases": [],
                "locality": [],
                "effective_at": "0001-01-01T00:00:00+05:00",
                "observed_at": "2020-01-01T00:00:00+00:00",
                "source_rank": 0,
            }
        )
