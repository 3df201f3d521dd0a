"""`make bench`: every measurement, one after the other; the figures go where the first argument says, as JSON."""

import json
import sys
from pathlib import Path

from bench import api, cni, dropins, repair

results = {"dropins": dropins.main(), "api": api.main(), "cni": cni.main(), "repair": repair.main()}
if sys.argv[1:]:
    Path(sys.argv[1]).write_text(json.dumps(results, indent=1) + "\n")
