"""Ports for servers that tests start on loopback."""

import itertools
import os
import socket

#: Below the ports that the kernel gives to connections, and each of pytest's parallel workers has its own thousand.
FIRST, COUNT = 20000, 1000
_START = FIRST + COUNT * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_NUMBERS = itertools.cycle(range(_START, _START + COUNT))


def free_port():
    """The next port that nobody has bound; none is handed out twice within a thousand calls."""
    for port in itertools.islice(_NUMBERS, COUNT):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError(f"none of the ports {_START} to {_START + COUNT - 1} is free")
