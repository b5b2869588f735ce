"""`python -m station.worker FD DRIVER...`: started by the station ahead of the next board, ends with that
board's visit.

One starts for each board, and half of what the station spends on a board is its imports: so nothing in vain here.
"""

from __future__ import annotations

import gc
import sys
from typing import Any

# What is imported stays, so there is no garbage to look for; `main` enables this again when all drivers are there.
gc.disable()
# structlog takes rich where it is installed, for tracebacks on a terminal. A worker has none.
modules: dict[str, Any] = sys.modules
modules["rich"] = None

from station.worker.process import main  # noqa: E402 - what is above has to come before all imports

del modules["rich"]

sys.exit(main(sys.argv[1:]))
