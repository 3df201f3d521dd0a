"""`make bench`: every measurement, one after the other."""

import sys

from bench import dropins

sys.exit(dropins.main())
