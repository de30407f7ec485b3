"""A daemon whose host has the memory that a folder says: `daemon_told.py FOLDER ...`, the rest being
how a daemon is started else.
"""

from __future__ import annotations

import sys
from pathlib import Path

from virtuary.__main__ import main
from virtuary.node.memory import keeper

keeper.PROC = Path(sys.argv[1])
sys.argv[1:] = ["daemon"]
main()
