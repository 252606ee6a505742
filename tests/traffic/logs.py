# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which replica a request went to, from the balancers' logs: streams and failures do not say it themselves.

Each request brings its id (X-Request-Id), and the balancers log it. HAProxy names the last server that it
tried (``gateways/node1-1``) and counts retries, nginx lists each upstream address.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess

ID = re.compile(r" id=([\w-]+)")
#: HAProxy's "actconn/feconn/beconn/srv_conn/retries" behind the state at the end; a plus says that another server was chosen.
COUNTERS = re.compile(r" [\w-]{4} \d+/\d+/\d+/\d+/(\+?)(\d+) ")
READ = """
{ journalctl --quiet --output=cat --since="@$1" --unit=haproxy --unit=nginx
  find /var/log/nginx -name "*.log" -exec cat {} + 2>/dev/null; } | grep -F -- "-$2-" || true
"""


def lines(cluster, run, since):
    """The lines of a run from all balancers that can be asked; a host that is away has taken its log with it."""
    found = []
    for host in sorted({balancer["host"] for balancer in cluster.topology["balancers"]}):
        command = ["docker", "exec", cluster.containers[host], "sh", "-c", READ, "sh", str(int(since)), run]
        found += subprocess.run(command, check=False, capture_output=True, text=True, timeout=120).stdout.splitlines()
    return found


def tried(line, replicas):
    """(ids of the replicas that a line names, in order; whether the request was sent more than once)"""
    places = []
    for replica in replicas:
        names = rf"(?<![\w.]){re.escape(replica['address'])}:{replica['port']}(?!\d)|\bgateways/{re.escape(replica['id'])}(?![\w-])"
        places += [(match.start(), replica["id"]) for match in re.finditer(names, line)]
    found = tuple(name for _place, name in sorted(places))
    counters = COUNTERS.search(line)
    return found, len(found) > 1 or bool(counters and (counters[1] or int(counters[2])))


def add(requests, lines, replicas):
    """The same requests, with what the log says of them."""
    known = {}
    for line in lines:
        name = ID.search(line)
        if name:
            names, repeated = tried(line, replicas)
            earlier = known.get(name[1], ((), False))
            known[name[1]] = (earlier[0] + names, earlier[1] or repeated)
    added = []
    for request in requests:
        names, repeated = known.get(request.id, ((), False))
        replica = request.replica or (names[-1] if names else None)
        added.append(dataclasses.replace(request, replica=replica, tried=names, repeated=repeated))
    return tuple(added)
