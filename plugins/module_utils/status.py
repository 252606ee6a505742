# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the hosts said of themselves, put together into one status. Pure."""

from __future__ import annotations

import datetime
import time

from . import backup, failover

#: Group of the inventory -> what its hosts are there for, and the unit that does it (a gateway has one for each replica, a balancer that of its engine).
ROLES = {
    "openclaw_balancers": ("balancer", None),
    "openclaw_gateways": ("gateway", None),
    "openclaw_redis": ("redis", "redis-server.service"),
    "openclaw_sentinels": ("sentinel", "redis-sentinel.service"),
    "openclaw_ollama": ("ollama", "ollama.service"),
    "openclaw_dns": ("dns", "pdns.service"),
}

#: Where there are several datacenters, hosts of :data:`failover.FENCED` watch the others.
DATACENTER_UNIT = "openclaw-datacenter.service"

#: Every gateway host has one, whatever the number of its replicas; and one of these, where channels need them: key of the topology -> unit.
AGENT_UNIT = "openclaw-agent.service"
CHANNEL_UNITS = {"ingresses": "openclaw-ingress.service", "owners": "openclaw-owner.service"}


def units_of(topology, host):
    """Names of the systemd units that a host should run, sorted."""
    groups = topology["hosts"][host]["groups"]
    units = [ROLES[group][1] for group in groups if ROLES[group][1]] + [AGENT_UNIT] * ("openclaw_gateways" in groups)
    units += [DATACENTER_UNIT] * (len(topology.get("datacenters", ())) > 1 and bool(failover.FENCED & set(groups)))
    units += [unit for key, unit in CHANNEL_UNITS.items() if host in [node["host"] for node in topology.get(key, ())]]
    for node in topology["balancers"]:
        if node["host"] == host:
            units += [f"{node['engine']}.service"] + ["keepalived.service"] * bool(node["vip"])
    return sorted(units + [replica["unit"] for replica in topology["replicas"] if replica["host"] == host])


def probes_of(topology, host):
    """What ``gateway_health`` should probe on a host: its own replicas, by the loopback address.

    A balancer may share the host, and a gateway refuses a request from a trusted proxy that names no client.
    """
    return [
        {"id": replica["id"], "address": "127.0.0.1", "port": replica["port"], "unit": replica["unit"]}
        for replica in topology["replicas"]
        if replica["host"] == host
    ]


def verdicts_of(topology, host):
    """What ``gateway_health`` should ask for the agent's verdicts on a host's replicas, with its path ``/health``."""
    return [
        {"id": replica["id"], "address": "127.0.0.1", "port": replica["verdict_port"], "unit": AGENT_UNIT}
        for replica in topology["replicas"]
        if replica["host"] == host
    ]


def roles_of(topology, host):
    """What a host is there for, in words, sorted."""
    return sorted(ROLES[group][0] for group in topology["hosts"][host]["groups"])


def vips_of(topology, answers):
    """Rows about the virtual addresses, and sentences about those that not exactly one balancer holds.

    :param answers: as in :func:`status`; ``vip`` is what ``ip address show to`` printed, empty for a balancer that does not hold it
    """
    rows, problems = [], []
    for vip in topology["vips"]:
        members = [node["host"] for node in topology["balancers"] if node["vip"] == vip["address"] and node["datacenter"] == vip["datacenter"]]
        said = {host: (answers.get(host) or {}).get("vip") for host in members}
        holders = [host for host in members if said[host]]
        silent = [host for host in members if said[host] is None]
        rows.append({**vip, "holders": holders, "silent": silent})
        if len(holders) > 1:
            who = " and ".join(holders)
            problems.append(f"{vip['address']}: {who} hold the virtual address at the same time; see journalctl -u keepalived on each of them.")
        elif not holders and not silent:
            problems.append(f"{vip['address']}: no balancer holds the virtual address; see journalctl -u keepalived on {', '.join(members)}.")
    return rows, problems


def balancers_of(topology, answers, draining):
    """Rows about the balancers, and sentences about those that keep requests from a replica without its agent's being the reason.

    :param answers: as in :func:`status`; ``balancer`` is what ``balancer_server`` returned
    :param draining: ids of the replicas that their agents drain
    """
    rows, problems = [], []
    for node in topology["balancers"]:
        said = (answers.get(node["host"]) or {}).get("balancer") or {}
        servers = said.get("servers")
        if servers is None and said.get("msg"):
            problems.append(f"{node['host']}: balancer: {said['msg']}")
        here = [one["id"] for one in topology["replicas"] if one["datacenter"] == node["datacenter"]]
        known = {server["id"]: server for server in servers or []}
        # nginx knows only after trying.
        sends = [name for name in here if name in known and known[name]["takes"] is not False]
        kept = {name: (f"{known[name]['state']}, {known[name]['status']}" if name in known else "not in its list") for name in here if name not in sends}
        answers_at_all = servers is not None
        rows.append({"host": node["host"], "engine": node["engine"], "answers": answers_at_all, "sends": sends, "kept": kept if answers_at_all else {}})
        if not answers_at_all:
            continue
        for name, why in kept.items():
            state = known.get(name, {}).get("state")
            if state is None:
                problems.append(f"{name}: {node['host']} does not know it; run site.yml.")
            elif state != "ready" and name not in draining:
                remedy = f"playbooks/drain.yml -e drain={name} -e drain_state=ready brings it back"
                problems.append(f"{name}: {state} on the balancer {node['host']} alone; {remedy}.")
            elif state == "ready" and name not in draining:
                problems.append(f"{name}: gets no requests from the balancer {node['host']} ({why}).")
    return rows, problems


def webhooks_of(topology, answers):
    """Rows about the ingresses, and sentences about what waits for a person.

    :param answers: as in :func:`status`; ``ingress`` is what the service says of itself
    """
    rows, problems = [], []
    for node in topology.get("ingresses", ()):
        said = (answers.get(node["host"]) or {}).get("ingress") or {}
        rows.append({"host": node["host"], **{key: said.get(key) for key in ("status", "redis", "events", "oldest_seconds", "dead")}})
        if not said:
            problems.append(f"{node['host']}: the ingress does not answer; see journalctl -u openclaw-ingress.")
        elif said["status"] != "ok":
            problems.append(f"{node['host']}: the ingress takes no webhooks ({'it stops' if said['stopping'] else 'Redis is away'}).")
    # The journal is the same for all.
    dead = max((row["dead"] or 0 for row in rows), default=0)
    if dead:
        problems.append(f"{dead} webhook events are dead letters: openclaw-ingress list --dead on any gateway host shows them, replay and drop settle them.")
    return rows, problems


def owners_of(topology, answers):
    """Rows about what one replica may have at a time, and sentences about what nobody has, or two.

    :param answers: as in :func:`status`; ``owner`` is what the service says of itself
    """
    found, problems = {}, []
    for node in topology.get("owners", ()):
        said = (answers.get(node["host"]) or {}).get("owner") or {}
        if not said:
            problems.append(f"{node['host']}: the owners' service does not answer; see journalctl -u openclaw-owner.")
        problems += [f"{node['host']}: owners: {problem}." for problem in said.get("problems", ())]
        for name, one in (said.get("singletons") or {}).items():
            row = found.setdefault(name, {"singleton": name, "replicas": [], "since": None, "token": 0})
            if one["replica"]:
                row["replicas"].append(one["replica"])
                row["state"] = one["state"]
            row["token"] = max(row["token"], one["token"] or 0)
            row["since"] = row["since"] or one["since"]
    for row in found.values():
        if len(row["replicas"]) != 1:
            who = " and ".join(row["replicas"]) or "nobody"
            problems.append(f"{row['singleton']}: {who} {'have' if len(row['replicas']) > 1 else 'has'} it; see journalctl -u openclaw-owner.")
    return list(found.values()), problems


def status(topology, answers):
    """One status of the whole cluster.

    :param topology: the fact ``topology_cluster``
    :param answers: per host a dict with ``units`` (text of ``systemctl show``: one state a line, in the order of
        :func:`units_of`), ``replicas`` (result of ``gateway_health``), ``verdicts`` (the same of the agents' verdicts), ``redis`` (result of
        ``sentinel_info``), ``aof`` (result of ``redis_aof_check``: ``verdict``, ``summary``, ``sentence``), ``balancer`` (result of
        ``balancer_server`` for no replicas), ``vip`` (see :func:`vips_of`), ``datacenter`` (what the service of that name says; empty where there
        is one datacenter), ``backup`` (see :func:`backup.backups`), ``ingress`` and ``owner`` (what these services say), each absent when the host did
        not answer
    :returns: dict with ``ok`` (bool), ``problems`` (sentences), ``datacenter`` (see :func:`datacenter_of`), ``hosts``, ``replicas``, ``balancers``,
        ``vips``, ``redis``, ``sentinels``, ``backups``, ``webhooks`` and ``owners`` (lists of rows)
    """
    datacenter, problems = datacenter_of(topology, answers)
    standby = datacenter is not None and datacenter["state"] != "active"
    hosts = []
    for name, host in topology["hosts"].items():
        states = (answers.get(name) or {}).get("units")
        wanted = units_of(topology, name)
        found = dict(zip(wanted, states.split())) if states else {}
        if ((answers.get(name) or {}).get("datacenter") or {}).get("state") != "fenced":
            problems += [f"{name}: unit {unit} is {found[unit]}." for unit in found if found[unit] != "active"]
        if not found:
            problems.append(f"{name}: the host does not answer.")
        units = {unit: found.get(unit, "unknown") for unit in wanted}
        hosts.append({"host": name, "address": host["address"], "datacenter": host["datacenter"], "roles": roles_of(topology, name), "units": units})

    replicas = []
    for replica in topology["replicas"]:
        probes = ((answers.get(replica["host"]) or {}).get("replicas") or {}).get("replicas") or []
        probe = next((one for one in probes if one["id"] == replica["id"]), {"healthy": False, "seen": "not asked", "version": ""})
        verdict = _verdict(replica, answers)
        replicas.append({**replica, "healthy": probe["healthy"], "seen": probe["seen"], "version": probe["version"], "verdict": verdict})
        if datacenter is not None and datacenter["state"] == "fenced":
            continue
        if not probe["healthy"]:
            problems.append(f"{replica['id']}: {probe['seen']}.")
        if standby:
            continue  # its gateways are drained, and have no primary to talk to
        if verdict["drain"]:
            problems.append(f"{replica['id']}: {drained(verdict['drain'])}.")
        problems += [f"{replica['id']}: {problem}." for problem in verdict["problems"]]

    balancers, wrong = balancers_of(topology, answers, {one["id"] for one in replicas if one["verdict"]["drain"]})
    if not standby:
        problems += wrong

    view = next((answers[name]["redis"] for name in topology["hosts"] if (answers.get(name) or {}).get("redis", {}).get("state")), None)
    fenced = datacenter is not None and datacenter["state"] == "fenced"
    if view is None:
        if not fenced:
            problems.append("No Redis host could be asked about Redis and Sentinel.")
        view = {"primary": None, "redis": [], "sentinels": [], "problems": []}
    if not fenced:
        problems += view["problems"]
    redis = []
    for row in view["redis"]:
        found = (answers.get(row["host"]) or {}).get("aof") or {}
        redis.append({**row, "aof": found.get("summary") or "-"})
        if found.get("verdict", "ok") != "ok" and not fenced:
            problems.append(f"{row['host']}: append-only file: {found.get('sentence') or found['verdict']}")
    vips, wrong = vips_of(topology, answers)
    problems += wrong
    backups, wrong = backup.backups(topology, answers, time.time())
    problems += wrong
    webhooks, wrong = webhooks_of(topology, answers)
    owners, more = owners_of(topology, answers)
    if not standby:
        problems += wrong + more
    return {
        "ok": not problems,
        "problems": problems,
        "datacenter": datacenter,
        "hosts": hosts,
        "replicas": replicas,
        "balancers": balancers,
        "vips": vips,
        "primary": view["primary"],
        "redis": redis,
        "sentinels": view["sentinels"],
        "backups": backups,
        "webhooks": webhooks,
        "owners": owners,
    }


def datacenter_of(topology, answers):
    """What the datacenter is just now, and sentences about what is not as it must be.

    :returns: None where there is one datacenter, else dict with ``name``, ``state`` (``active``, ``standby``, ``fenced``, ``unclaimed``, ``unknown``),
        ``why`` (sentence) and ``behind`` (bytes that a standby lacked when it last saw the active primary; None when it is none)
    """
    if len(topology.get("datacenters", ())) < 2:
        return None, []
    said = {name: (answers.get(name) or {}).get("datacenter") or {} for name in topology["hosts"]}
    told = {name: one for name, one in said.items() if one}
    states = {one["state"] for one in told.values()}
    state = states.pop() if len(states) == 1 else "unknown"
    problems = []
    if len({one["state"] for one in told.values()}) > 1:
        problems.append("The hosts do not agree on what this datacenter is: " + ", ".join(f"{name} {one['state']}" for name, one in told.items()) + ".")
    first = next(iter(told.values()), {})
    problems += [
        f"{name}: fenced since {one['since']}: {one['reason']} dr_failback.yml joins it again." for name, one in told.items() if one["state"] == "fenced"
    ]
    if state == "disagreed":
        problems.append(first["why"])
    lacks = [max(0, one["contact"]["offset"] - one["contact"]["own"]) for one in told.values() if one.get("contact") and one["contact"]["own"] is not None]
    why = first.get("why") or first.get("reason") or "no host says"
    return {"name": topology["datacenter"], "state": state, "why": why, "behind": min(lacks) if lacks and state == "standby" else None}, problems


def _verdict(replica, answers):
    """The agent's verdict on a replica: ``status``, ``failing`` (checks), ``problems`` and ``drain``; status unknown without an answer."""
    asked = ((answers.get(replica["host"]) or {}).get("verdicts") or {}).get("replicas") or []
    answer = next((one for one in asked if one["id"] == replica["id"]), None)
    if answer is None:
        return {"status": "unknown", "failing": [], "problems": [], "drain": None}
    body = answer.get("verdict") or {}
    if not body:
        return {"status": "unknown", "failing": [], "problems": [f"agent: {answer['seen']}"], "drain": None}
    failing = [name for name, ok in body["checks"].items() if ok is False]
    return {"status": body["status"], "failing": failing, "problems": body["problems"], "drain": body["drain"]}


def drained(switch):
    """Who drained a replica, when and why, in words."""
    since = f" since {switch['since']}" if switch["since"] else ""
    return f"drained{since}{' by ' + switch['by'] if switch['by'] else ''}{' (' + switch['reason'] + ')' if switch['reason'] else ''}"


def _verdict_cell(verdict):
    failing = f" ({', '.join(verdict['failing'])})" if verdict["failing"] else ""
    return f"{verdict['status']}{failing}{', ' + drained(verdict['drain']) if verdict['drain'] else ''}"


def table(found):
    """The status as lines of text: a table for hosts, replicas and Redis, then what is wrong."""
    lines = []
    if found["datacenter"]:
        one = found["datacenter"]
        lines = [f"DATACENTER {one['name']}: {one['state']}. {one['why']}" + ("" if one["behind"] is None else f" {one['behind']} bytes behind."), ""]
    lines += columns(
        [("HOST", "ADDRESS", "ROLES", "UNITS")]
        + [
            (
                row["host"],
                row["address"],
                " ".join(row["roles"]),
                " ".join(f"{unit.removesuffix('.service')}={state}" for unit, state in row["units"].items()),
            )
            for row in found["hosts"]
        ]
    )
    lines += [""] + columns(
        [("REPLICA", "ENDPOINT", "ZONE", "VERSION", "STATE", "VERDICT")]
        + [
            (row["id"], f"{row['address']}:{row['port']}", row["zone"], row["version"] or "-", row["seen"], _verdict_cell(row["verdict"]))
            for row in found["replicas"]
        ]
    )
    if found["balancers"]:
        lines += [""] + columns([("BALANCER", "ENGINE", "SENDS TO", "NOT TO")] + [_balancer_row(row) for row in found["balancers"]])
    if found["vips"]:
        rows = [(row["address"], row["datacenter"], " ".join(row["holders"]) or ("?" if row["silent"] else "nobody")) for row in found["vips"]]
        lines += [""] + columns([("VIRTUAL ADDRESS", "DATACENTER", "HELD BY"), *rows])
    lines += [""] + columns([("REDIS", "ENDPOINT", "ROLE", "LINK", "BEHIND", "HEARD", "AOF")] + [_redis_row(row) for row in found["redis"]])
    lines += [""] + columns([("SENTINEL", "ENDPOINT", "PRIMARY", "QUORUM", "STATE")] + [_sentinel_row(row) for row in found["sentinels"]])
    if found["webhooks"]:
        lines += [""] + columns([("INGRESS", "STATE", "WAITING", "OLDEST", "DEAD LETTERS")] + [_webhook_row(row) for row in found["webhooks"]])
    if found["owners"]:
        lines += [""] + columns([("ONE REPLICA HAS", "REPLICA", "SINCE", "TOKEN")] + [_owner_row(row) for row in found["owners"]])
    if found["backups"]:
        lines += [""] + columns(backup.lines(found["backups"]))
    return lines + [""] + (found["problems"] or ["Nothing is wrong."])


def columns(rows):
    """Rows of texts as aligned lines."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def _balancer_row(row):
    if not row["answers"]:
        return (row["host"], row["engine"], "?", "no answer")
    return (row["host"], row["engine"], " ".join(row["sends"]) or "nobody", "; ".join(f"{name} ({why})" for name, why in row["kept"].items()) or "-")


def _webhook_row(row):
    if row["status"] is None:
        return (row["host"], "no answer", "?", "?", "?")
    return (row["host"], row["status"], str(row["events"]), f"{row['oldest_seconds']:g} s", str(row["dead"]))


def _owner_row(row):
    since = datetime.datetime.fromtimestamp(row["since"], datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ") if row["since"] else "-"
    return (row["singleton"], " ".join(row["replicas"]) or "nobody", since, str(row["token"]))


def _redis_row(row):
    endpoint = f"{row['address']}:{row['port']}"
    if row.get("error"):
        return (row["host"], endpoint, "?", "-", "-", "no answer", row["aof"])
    if row["role"] == "master":
        return (row["host"], endpoint, "primary", f"{row['connected']} replicas", "-", "-", row["aof"])
    behind = "?" if row.get("behind") is None else f"{row['behind']} bytes"
    return (row["host"], endpoint, "replica", "up" if row["link"] else "down", behind, f"{row['lag']} s ago", row["aof"])


def _sentinel_row(row):
    endpoint = f"{row['address']}:{row['port']}"
    if row.get("error"):
        return (row["host"], endpoint, "no answer", "-", "-")
    state = [word for word, is_so in (("tilt", row.get("tilt")), ("failover in progress", row.get("failover"))) if is_so]
    quorum = f"{'ok' if row['quorum_ok'] else 'missing'}{'' if row.get('quorum') is None else ' (' + str(row['quorum']) + ')'}"
    return (row["host"], endpoint, row["primary"] or "nobody", quorum, ", ".join(state) or "-")
