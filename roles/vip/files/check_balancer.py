# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether this balancer may hold the virtual address: check_balancer.py SECONDS LOCAL-URL [PEER-URL ...]

SECONDS are given to the local balancer.

Keepalived runs it once a second. Exit status 0: it may; 1: another balancer is better off, so the address has to go there.
As long as no other one is better off the address stays: with all replicas gone, clients shall get an answer that says so.
"""

import socket
import sys
import time

SERVES, EMPTY, SILENT = 2, 1, 0
#: Seconds for all peers together. With those for the local balancer they are less than keepalived's own limit.
PEERS = 1.2


def state(url, seconds):
    """How well off a balancer is: it has replicas, it answers but has none, or it does not answer."""
    scheme, _separator, rest = url.partition("://")
    address, _slash, path = rest.partition("/")
    host, _colon, port = address.rpartition(":")
    deadline = time.monotonic() + seconds
    answer = b""
    try:
        with socket.create_connection((host, int(port)), timeout=seconds) as connection:
            if scheme == "https":
                import ssl  # takes longer than all the rest, and is only needed for a peer

                # No secret is said, and the answer of a stranger on the balancers' own addresses would only move the address.
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                connection = context.wrap_socket(connection)
            connection.sendall(f"GET /{path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            while b"\n" not in answer and len(answer) < 100:
                connection.settimeout(max(0.001, deadline - time.monotonic()))
                part = connection.recv(100)
                if not part:
                    break
                answer += part
    except OSError:
        return SILENT
    words = answer.split()[:2]
    if len(words) < 2 or not words[0].startswith(b"HTTP/"):
        return SILENT
    return SERVES if words[1] == b"200" else EMPTY


def may_hold(seconds, local, peers, ask=state):
    """Whether no peer is better off. They are asked only while something is wrong here."""
    own = ask(local, seconds)
    return own == SERVES or not any(ask(peer, PEERS / len(peers)) > own for peer in peers)


if __name__ == "__main__":
    sys.exit(0 if may_hold(float(sys.argv[1]), sys.argv[2], sys.argv[3:]) else 1)
