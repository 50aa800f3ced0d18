"""Peers, each run in a virtual environment of its own under .venvs/ that `setup.sh` makes with exact
versions.

They train the very networks, samples and batch orders of `workloads`, so that their new global weights can
be compared with R1's. Each is used as its own documentation says and with what it has for speed.
"""

PEERS = ("flower", "pfl")
