"""How long somebody is waited for where nobody said otherwise: figures that the daemon, its API,
the clients and the command line share.

Nothing is loaded for them, as the command line has to be fast.
"""

STOP_TIMEOUT = 90.0
"""Seconds that a guest is given to shut down before the plug is pulled."""
