"""What CounterFact measures on whole texts: how varied they are, and how like what is written about the object.

Both follow ROME's evaluation (Meng et al. 2022, section 3.4 and appendix F): fluency is the weighted entropy of
n-grams (GE), consistency the cosine of TF-IDF vectors of the texts and of reference texts (RS).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from editing.errors import SuiteError
from editing.evals.suites.files import need, read_records

_WORDS = re.compile(r"\w+|[^\w\s]")  # of the entropy: punctuation counts
_TERMS = re.compile(r"\b\w\w+\b")  # of TF-IDF: words of two letters or more


def ngram_entropy(text: str, weights: Mapping[int, float]) -> float:
    """Mean over n of weight times the entropy, in bits, of the text's n-grams; 0 where it has none of that length."""
    words = _WORDS.findall(text)
    entropies = []
    for n, weight in weights.items():
        counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
        total = counts.total()
        entropies.append(weight * -math.fsum(c / total * math.log2(c / total) for c in counts.values()))
    return math.fsum(entropies) / len(entropies)


def inverse_frequencies(documents: Iterable[str]) -> dict[str, float]:
    """Smoothed inverse document frequency of every term: ln((1 + N) / (1 + df)) + 1."""
    seen: Counter[str] = Counter()
    count = 0
    for document in documents:
        seen.update(_terms(document).keys())
        count += 1
    return {term: math.log((1 + count) / (1 + found)) + 1 for term, found in sorted(seen.items())}


def similarity(text: str, reference: str, frequencies: Mapping[str, float]) -> float:
    """Cosine of the TF-IDF vectors of two texts over the known terms; 0 where one of them has none."""
    ours, theirs = (
        {term: n * frequencies[term] for term, n in _terms(each).items() if term in frequencies}
        for each in (text, reference)
    )
    product = math.fsum(ours[term] * theirs[term] for term in ours.keys() & theirs.keys())
    norms = math.prod(math.sqrt(math.fsum(x * x for x in each.values())) for each in (ours, theirs))
    return product / norms if norms else 0.0


def _terms(text: str) -> Counter[str]:
    return Counter(_TERMS.findall(text.lower()))


References = Mapping[tuple[str, str], Sequence[str]]


def read_references(path: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """Reference texts by (relation id, object id), from a file with the fields of ROME's `attribute_snippets.json`.

    Raises `SuiteError` naming the record and the field that is missing.
    """
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for place, record in enumerate(read_records(path)):
        key = (str(need(record, "relation_id", path, place)), str(need(record, "target_id", path, place)))
        texts = tuple(str(sample.get("text") or "") for sample in need(record, "samples", path, place))
        if not all(texts):
            raise SuiteError(f"a sample of record {place} of {path} has no 'text'; every reference text has one")
        found[key] = (*found.get(key, ()), *texts)
    return found
