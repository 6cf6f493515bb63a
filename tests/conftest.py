"""What every test stands on: no workspace of its user, arithmetic that is the same on any number of cores, a seed."""

import os

import pytest

KEPT = "ERRATA_DATA"  # where the development data is
MODELS = {"tiny_base", "tiny_model"}  # fixtures with weights: what a test makes of them hangs on rounding

for _name in [name for name in os.environ if name.startswith("ERRATA_") and name != KEPT]:
    del os.environ[_name]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are trained alike wherever the tests run


@pytest.fixture(scope="session")
def seed() -> int:
    """Of the tests' random and trained models; `TEST_SEED` gives another, with which every test must hold as well."""
    return int(os.environ.get("TEST_SEED", "0"))


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Mark every test that stands on a model."""
    for item in items:
        if MODELS & set(item.fixturenames):
            item.add_marker(pytest.mark.model)
