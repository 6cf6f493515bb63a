import os
import signal
import subprocess
import sys

import pytest

from tasks.progress import listening, reporter


def test_listeners_hear_every_stage():
    heard = []
    with listening(lambda *told: heard.append(told)):
        report = reporter("batch 1: ")
        for done in range(3):
            report("layers", done, 2)
    reporter()("unheard", 1, 1)
    assert heard == [("batch 1: layers", done, 2) for done in range(3)]


@pytest.mark.parametrize(("fault", "reached"), [("", "abc"), ("b", "a"), ("b:2", "abca"), ("x", "abc")])
def test_an_armed_fault_kills_at_its_checkpoint(fault, reached):
    script = (
        "from tasks.faults import checkpoint\n"
        f"for name in {'abcabc' if ':' in fault else 'abc'!r}:\n    checkpoint(name); print(name, end='', flush=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "ERRATA_FAULT": fault}, capture_output=True
    )
    assert done.stdout.decode() == reached
    assert done.returncode == (0 if fault in ("", "x") else -signal.SIGKILL)
