"""`make bench`: every measurement, one after the other; the first argument is the percent of rounds."""

import subprocess
import sys

for part in ("control", "scale"):
    subprocess.run([sys.executable, "-m", f"bench.{part}", *sys.argv[1:]], check=True)
