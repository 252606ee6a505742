# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas as a balancer sees them, and the next step towards the state they shall have. Pure."""

from __future__ import annotations

import csv
import dataclasses

#: HAProxy's backend and nginx's upstream.
BACKEND = "gateways"
#: HAProxy's backend of what another datacenter answers.
ELSEWHERE = "datacenters"
#: State of a replica -> HAProxy's word for it.
WORDS = {"drained": "drain", "ready": "ready", "maintenance": "maint"}
#: Flags of srv_admin_state: what was set on the socket, in the configuration or by a server that this one tracks.
_MAINTENANCE, _DRAIN = 0x01 | 0x02 | 0x04, 0x08 | 0x10
#: Looks in a row that must find no session: a request may be on its way to the replica while it is drained.
PROOF = 2
#: Seconds for sessions to end that were cut.
CUT_SECONDS = 5


@dataclasses.dataclass(frozen=True)
class Server:
    """A replica on one balancer.

    state: drained, ready or maintenance, as set on the balancer
    status: the balancer's own word for what it does with it
    takes: whether it gets new requests; None where the balancer does not know
    sessions: requests and connections in flight
    older: those of them that are held by a process which a reload has left behind
    requests, errors: since the balancer was started or reloaded; None where it does not count by replica
    """

    state: str
    status: str = ""
    takes: bool | None = None
    sessions: int = 0
    older: int = 0
    requests: int | None = None
    errors: int | None = None


@dataclasses.dataclass(frozen=True)
class Step:
    """What to do next: ``set`` (to ``state``), ``cut``, ``wait``, ``done`` or ``fail`` (``text`` says why)."""

    action: str
    state: str = ""
    text: str = ""


def rows(stat):
    """``show stat`` as a dict of rows by server."""
    lines = stat.lstrip("# ").splitlines()
    return {row["svname"]: row for row in csv.DictReader(lines) if row.get("pxname") == BACKEND and row["svname"] not in ("BACKEND", "FRONTEND")}


def states(text):
    """``show servers state`` as a dict of rows by server; empty when it is no such answer."""
    names, found = [], {}
    for line in text.splitlines():
        fields = line.lstrip("# ").split()
        if line.startswith("#"):
            names = fields
        elif len(fields) > 1 and names:
            row = dict(zip(names, fields))
            if row.get("be_name") == BACKEND:
                found[row["srv_name"]] = row
    return found


def set_state(flags):
    """The state that HAProxy's admin flags of a server mean."""
    if flags & _MAINTENANCE:
        return "maintenance"
    return "drained" if flags & _DRAIN else "ready"


def servers(stat, state, older):
    """HAProxy's replicas by id.

    :param stat: answer to ``show stat``
    :param state: answer to ``show servers state``
    :param older: ``older(address, port)`` counts the connections of processes that were replaced
    """
    counted = rows(stat)
    found = {}
    for name, row in states(state).items():
        seen = counted[name]
        left = older(row["srv_addr"], int(row["srv_port"]))
        found[name] = Server(
            state=set_state(int(row["srv_admin_state"])),
            status=seen["status"],
            # A replica without a check is "no check"; one that its agent keeps out is UP, with a weight of 0.
            takes=seen["status"].startswith(("UP", "no check")) and seen["weight"] != "0",
            sessions=int(seen["scur"] or 0) + int(seen["qcur"] or 0) + left,
            older=left,
            requests=int(seen["stot"] or 0),
            # Connections that failed, answers that broke off or never came, and answers of 5xx.
            errors=sum(int(seen[name] or 0) for name in ("econ", "eresp", "hrsp_5xx")),
        )
    return found


def pid(info):
    """The process that answers, from ``show info``."""
    return next((int(line.split(":")[1]) for line in info.splitlines() if line.startswith("Pid:")), None)


def established(table, address, port):
    """Inodes of the sockets that are connected to an IPv4 address and port, from the text of /proc/net/tcp."""
    number = int.from_bytes(bytes(int(part) for part in address.split(".")), "little")
    remote = f"{number:08X}:{port:04X}"
    lines = [line.split() for line in table.splitlines()[1:]]
    return {fields[9] for fields in lines if len(fields) > 9 and fields[2] == remote and fields[3] == "01"}


def unknown(wanted, known):
    """A sentence about replicas that the balancer does not have; empty when it has them all."""
    strangers = [name for name in wanted if name not in known]
    if not strangers:
        return ""
    return f"This balancer has no replica {', '.join(strangers)}; it has {', '.join(known) or 'none'}."


def next_step(name, server, wanted, waited, deadline, cut=False, idle=0, cut_at=None):
    """What brings a replica nearer to ``wanted``.

    :param server: what was just seen
    :param waited: seconds since the first look
    :param deadline: seconds to wait for sessions to end, or for a replica to get requests again; 0 does not wait for the latter
    :param cut: whether to cut sessions after the deadline
    :param idle: looks in a row, this one included, that found no session
    :param cut_at: ``waited`` at the time when its sessions were cut
    """
    if wanted == "ready":
        if server.state != "ready":
            return Step("set", "ready")
        if server.takes is not False or deadline == 0:
            return Step("done")
        if waited < deadline:
            return Step("wait")
        return Step("fail", text=f"{name} is ready on this balancer, but gets no requests: after {deadline:g} s it is {server.status}.")

    if server.state == "ready" or (wanted == "drained" and server.state != "drained"):
        return Step("set", "drained")
    if idle >= PROOF:
        return Step("done") if server.state == wanted else Step("set", wanted)
    if server.sessions == 0 or waited < deadline or (cut_at is not None and waited < cut_at + CUT_SECONDS):
        return Step("wait")
    if cut and cut_at is None and server.sessions > server.older:
        return Step("cut")
    count = f"{server.sessions} session{'' if server.sessions == 1 else 's'}"
    if server.older:
        where = f", {server.older} of them in a process that a reload has left behind, which only ends by itself"
        return Step("fail", text=f"{name} still has {count} on this balancer after {waited:.0f} s{where}; it stays drained. Wait longer.")
    how = "could not be cut" if cut else "wait longer (deadline) or cut them (cut)"
    return Step("fail", text=f"{name} still has {count} on this balancer after {waited:.0f} s; it stays drained: {how}.")
