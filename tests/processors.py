"""Run tests as other processors round; `make processors` does so with those that stand on a model.

PyTorch and the libraries under it choose their kernels by the processor's vector instructions and share a sum out
among threads; with either, the last bits of every sum change. A test that says something passes under all of them.
What the processor at hand lacks is left out, and said.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

# What keeps PyTorch, MKL and oneDNN to a set of vector instructions; each set contains those before it.
CAPABILITIES = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    },
}


def available() -> list[str]:
    """The sets of instructions that this processor has, weakest first; PyTorch chooses the last by itself."""
    without = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    ask = [sys.executable, "-c", "import torch; print(torch.backends.cpu.get_cpu_capability().lower())"]
    best = subprocess.run(ask, env=without, check=True, capture_output=True, text=True).stdout.strip()
    names = list(CAPABILITIES)
    return names[: names.index(best) + 1] if best in names else names[:1]


def run(capability: str, threads: int, arguments: list[str]) -> bool:
    """Whether pytest with these arguments passes under a set of instructions and with a number of threads."""
    environment = {**os.environ, **CAPABILITIES[capability], "OMP_NUM_THREADS": str(threads)}
    return subprocess.run([sys.executable, "-m", "pytest", *arguments], env=environment).returncode == 0


def main() -> int:
    """Run them all, also after a failure, and say how each went; 1 when one failed."""
    parser = argparse.ArgumentParser(description="Run tests as other processors round.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of threads; default: 1 and 2")
    parser.add_argument("--others", action="store_true", help="leave out the set that PyTorch chooses here by itself")
    parser.add_argument("arguments", nargs="*", help="pytest's, after --")
    given = parser.parse_args()
    here, told, failed = available(), [], False
    for capability in CAPABILITIES:
        if capability not in here:
            told.append(f"{capability}: skipped, this processor does not have it")
            continue
        if given.others and capability == here[-1]:
            told.append(f"{capability}: left out, it is this processor's own")
            continue
        for threads in given.threads:
            print(f"== {capability}, threads: {threads}", flush=True)
            start = time.monotonic()
            passes = run(capability, threads, given.arguments)
            failed |= not passes
            outcome = "passed" if passes else "FAILED"
            told.append(f"{capability}, threads {threads}: {outcome} in {time.monotonic() - start:.0f} s")
    print("\n".join(told))
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
