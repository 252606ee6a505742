# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""nginx's list of gateway replicas, as text.

Pure. One place makes it, because two write it: the role ``balancer``, and the module ``balancer_server`` when it drains.
"""

from __future__ import annotations

#: A replica is left alone for 15 s after three failures within 15 s.
_SERVER = "max_fails=3 fail_timeout=15s"


def render(replicas, drained=()):
    """The file upstream.conf.

    :param replicas: the replicas that the balancer sends to, each with ``id``, ``address`` and ``port``
    :param drained: ids of those that get no new request; an id that is not among the replicas means nothing
    """
    lines = [
        "# Written by Ansible: do not edit. Which replicas are drained is said in the file drained beside it.",
        "upstream gateways {",
        "    # The workers share what they know of the replicas.",
        "    zone gateways 256k;",
        "    least_conn;",
    ]
    lines += [
        f"    server {replica['address']}:{replica['port']} {_SERVER}{' down' if replica['id'] in drained else ''}; # {replica['id']}"
        for replica in replicas
    ]
    # Shorter than the 5 s after which a gateway (Node) closes a connection that is idle: a POST sent into a closing one would be lost.
    lines += ["    keepalive 32;", "    keepalive_timeout 4s;", "}"]
    return "\n".join(lines) + "\n"


def ids(text):
    """The ids in the file ``drained``: one a line; empty lines and comments mean nothing."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]
