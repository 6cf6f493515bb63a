"""What every test stands on: no workspace of its user, and arithmetic that is the same on any number of cores."""

import os

KEPT = "ERRATA_DATA"  # where the development data is

for _name in [name for name in os.environ if name.startswith("ERRATA_") and name != KEPT]:
    del os.environ[_name]

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models are trained alike wherever the tests run
