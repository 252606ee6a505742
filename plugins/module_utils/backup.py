# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What hosts say of their backups, judged and put into rows; and where a restore puts the data. Pure."""

from __future__ import annotations

import json

from .redis_view import where

HOUR = 3600
_DONE = {"make": "backup", "check": "check of the backup repository", "prove": "restore test"}
_LOGS = "see journalctl -u openclaw-backup-{action} there"


def age(seconds):
    """A span of time in words."""
    for size, word in ((86400, "d"), (HOUR, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{max(0, seconds):.0f} s"


def said(result):
    """What ``openclaw-backup status`` printed, from the result of the task that ran it; ``error`` where it printed nothing."""
    if not result or result.get("skipped") or result.get("unreachable"):
        return {}
    try:
        return json.loads(result.get("stdout") or "")
    except ValueError:
        return {"error": result.get("stderr") or result.get("msg") or "it says nothing"}


def backups(topology, answers, now):
    """Rows about backups and restore tests, and sentences about what is too old, failed or not planned.

    :param topology: the fact ``topology_cluster`` of all hosts
    :param answers: per host a dict with ``backup`` (see :func:`said`); empty where there are no backups
    :param now: seconds since 1970
    """
    everybody = {host: (answers.get(host) or {}).get("backup") or {} for host in topology["hosts"]}
    rows, problems = [], [f"{host}: openclaw-backup status: {one['error']}; run site.yml." for host, one in everybody.items() if one.get("error")]
    known = {host: one for host, one in everybody.items() if one.get("kinds")}
    for host, one in known.items():
        for timer, state in one["timers"].items():
            if state != "active":
                problems.append(f"{host}: {timer} is {state}; run site.yml.")
        for action, record in one["records"].items():
            rows += [_row(host, action, part, record, now) for part in record["good"] if action != "check"]
            if not record["ok"]:
                times = f"{record['failures']} times in a row" if record["failures"] > 1 else "the last time"
                problems.append(f"{host}: {_DONE[action]} failed {times}: {' '.join(record['problems'])} {_LOGS.format(action=action).capitalize()}.")
    # One host saves Redis for its site, and which one may change; a gateway host saves itself.
    for site in dict.fromkeys(host["datacenter"] for host in topology["hosts"].values()):
        members = {host: one for host, one in known.items() if topology["hosts"][host]["datacenter"] == site and "redis" in one["kinds"]}
        if members:
            limits = next(iter(members.values()))
            problems += _too_old(f"Redis of {site}", "backup", newest(members, "make", "redis"), limits["max_age"], now)
            problems += _too_old(f"Redis of {site}", "restore test", newest(members, "prove", "restore test"), limits["restore_max_age"], now)
    for host, one in known.items():
        if "gateway" in one["kinds"]:
            problems += _too_old(f"Gateways of {host}", "backup", newest({host: one}, "make", "gateway"), one["max_age"], now)
    return rows, problems


def newest(known, action, what):
    """When something went well last on any of these hosts; None when it never did."""
    times = [
        record["good_at"]
        for record in (one["records"].get(action) or {} for one in known.values())
        if record.get("good_at") and any(part["what"] == what for part in record["good"])
    ]
    return max(times, default=None)


def _too_old(who, what, at, hours, now):
    if at is None:
        return [f"{who}: there is no good {what} yet; run backup.yml{' with -e backup_prove=true' if what == 'restore test' else ''}."]
    if now - at > hours * HOUR:
        return [f"{who}: the last good {what} is {age(now - at)} old, and {hours:g} h are allowed."]
    return []


def _row(host, action, part, record, now):
    return {
        "host": host,
        "action": action,
        "what": part["what"],
        "snapshot": part.get("snapshot"),
        "bytes": part.get("bytes"),
        "seconds": part.get("seconds"),
        "age": round(now - record["good_at"]),
        "conversations": part.get("conversations"),
    }


def lines(rows):
    """Rows as texts, with their heading."""
    return [("HOST", "WHAT", "SNAPSHOT", "SIZE", "SECONDS", "AGE", "CONVERSATIONS")] + [
        (
            row["host"],
            row["what"],
            row["snapshot"] or "-",
            "-" if row["bytes"] is None else f"{row['bytes'] / 1e6:.1f} MB",
            "-" if row["seconds"] is None else f"{row['seconds']:.1f}",
            f"{age(row['age'])}",
            "-" if row["conversations"] is None else str(row["conversations"]),
        )
        for row in rows
    ]


def told(said, now):
    """Rows about backups of hosts, and sentences: what failed, and who saved nothing because another host does.

    :param said: per host ``status`` (what ``openclaw-backup status`` printed, as a dict) or ``would`` (sentences of a dry run)
    """
    rows, notes = [], []
    for host, one in said.items():
        notes += [f"{host}: {sentence}" for sentence in one.get("would") or []]
        for action, record in ((one.get("status") or {}).get("records") or {}).items():
            rows += [_row(host, action, part, record, now) for part in record["good"] if action != "check"]
            notes += [f"{host}: {record['skipped']}."] if record.get("skipped") and action == "make" else []
            notes += [f"{host}: {_DONE[action]} failed: {problem}" for problem in record["problems"]]
    return rows, notes


def restore_target(nodes, view):
    """Which Redis server gets the data: the agreed primary, else the one that most Sentinels name, else the inventory's first.

    :param nodes: the site's Redis servers
    :param view: result of ``sentinel_info``
    :returns: ``{"host", "address", "port", "why"}``
    """
    if view.get("state") == "agreed" and view.get("primary"):
        found, why = view["primary"], "it is the primary"
    else:
        named = [one["primary"] for one in view.get("sentinels") or [] if one.get("primary")]
        found = max(sorted(set(named)), key=named.count, default=None)
        why = "most Sentinels that answer name it"
        if not found or 2 * named.count(found) <= len(named):
            found, why = None, "nobody says who the primary is, and it is the first of the inventory"
    node = next((one for one in nodes if where(one) == found), None)
    if node is None:
        node, why = nodes[0], "nobody says who the primary is, and it is the first of the inventory"
    return {"host": node["host"], "address": node["address"], "port": node["port"], "why": why}


def restore_problems(holds, target, over):
    """What stands against a restore, as sentences.

    :param holds: per host what ``openclaw-backup holds`` printed, as a dict
    :param over: whether data that are there may be replaced
    """
    problems = [f"{host}: Redis was never set up here; run site.yml first, then this again." for host, one in holds.items() if not one["set_up"]]
    full = [f"{host} has {_amount(one)}" for host, one in holds.items() if one["data"]]
    if full and not over:
        problems.append(
            f"Redis holds data ({', '.join(full)}); allowed is an empty one, or -e restore_over=true, which moves what is there aside before data are put on"
            f" {target['host']}."
        )
    return problems


def _amount(one):
    return f"files of {one['bytes']} bytes" if one["keys"] is None else f"{one['keys']} keys"
