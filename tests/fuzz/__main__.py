"""`make fuzz`: rounds of all fuzzers with new seeds, until the time is up or one finds something.

It must not know what is fuzzed. The one idea: pytest does the work; what is printed with a failure repeats its round.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

#: Examples of a round, as a multiple of what `make test` tries.
_FACTOR = 5


def main() -> int:
    """Arguments: seconds, and a seed to begin with, else a random one."""
    until = time.monotonic() + float(sys.argv[1])
    seed = int(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2] else secrets.randbelow(1 << 32)
    while True:
        print(f"--- round with seed {seed}; make fuzz FUZZ_SECONDS=1 FUZZ_SEED={seed} repeats it", flush=True)
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-o",
            "timeout=0",
            "--dist",
            "loadfile",
        ]
        command += ["-n", "auto", f"--hypothesis-seed={seed}", str(Path(__file__).parent)]
        status = subprocess.run(command, env=os.environ | {"FUZZ_FACTOR": str(_FACTOR)}, check=False).returncode
        if status or time.monotonic() > until:
            return status
        seed += 1


if __name__ == "__main__":
    sys.exit(main())
