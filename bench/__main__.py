"""`make bench`: every measurement, one after the other, then the page; the first argument is the percent of rounds."""

import subprocess
import sys

for part in ("data", "control", "scale", "profile"):
    subprocess.run([sys.executable, "-m", f"bench.{part}", *sys.argv[1:]], check=True)
subprocess.run([sys.executable, "-m", "bench.page"], check=True)
