"""Which subjects a text may name, among any number of them."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from editing.editors.recipe.names import LONGEST, Names
from editing.facts import fold
from editing.tokenisation import find_subject

WORDS = ["Ada", "Moss", "St.", "Co.", "C++", "李", "明", "ß", "O'Hara", "-", "Nigeria", "Niger", "ΟΔΟΣ", "don't"]
PHRASES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join)


@given(subjects=st.lists(PHRASES, min_size=1, max_size=6), text=st.lists(PHRASES, max_size=3).map(", ".join))
@example(subjects=["Co."], text="Avel Co. is")
@example(subjects=["李明"], text="谁是李明的母亲")
def test_no_subject_that_a_text_names_is_missed(subjects, text):
    names = Names([fold(subject) for subject in subjects], np.arange(len(subjects)) + 7)
    found = names.rows(text)
    assert sorted(found) == found.tolist()
    for row, subject in enumerate(subjects, start=7):
        if any(map(str.isalnum, subject)) and find_subject(text, subject) >= 0:
            assert row in found


@pytest.mark.parametrize("text", ["Nobody at all", "Ad", "", "Ada and Moss"])
def test_what_is_not_named_is_not_found(text):
    assert not len(Names(["ada moss", "nigeria"], np.arange(2)).rows(text))


def test_a_name_of_more_words_is_found_by_its_first():
    name = " ".join(f"word{place}" for place in range(LONGEST + 3))
    assert Names([name], np.array([4])).rows(f"who is {name}?").tolist() == [4]
