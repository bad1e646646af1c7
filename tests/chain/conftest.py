"""Makes the doubles beside the tests importable."""

import sys
from pathlib import Path

HERE = str(Path(__file__).parent)
if HERE not in sys.path:
    sys.path.insert(0, HERE)

from chain_fixtures import *  # noqa: E402, F403  (needs the path above)
from chain_fixtures import _own_settings  # noqa: E402, F401  (a star leaves it out)
