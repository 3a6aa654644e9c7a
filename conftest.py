"""Take the checkout off ``sys.path`` before anything imports `lloyal`.

``python3 -m pytest`` starts with the checkout first on the path, where the uncompiled ``lloyal/`` would shadow the
installed one. Tests that start Python themselves pass ``-P`` for the same reason.
"""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parent

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]
