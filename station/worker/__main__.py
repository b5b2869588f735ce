"""`python -m station.worker FD DRIVER...`: started by the station ahead of the next board, ends with that
board's visit.
"""

from __future__ import annotations

import sys

from station.worker.process import main

sys.exit(main(sys.argv[1:]))
