# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether the conversations may move to another datacenter now, and what such a move took. Pure."""

from __future__ import annotations

import datetime
import html

#: Groups whose hosts take messages or writes, and so have to be fenced.
FENCED = {"openclaw_gateways", "openclaw_redis", "openclaw_sentinels"}

#: Bytes that a standby may lack when a planned failover begins; catching up with more would make the pause long.
MAX_BEHIND = 64 * 1024 * 1024

#: Steps of a failover in their order -> what has happened by then.
STEPS = {
    "rested": "the active datacenter has nothing in flight, and the standby has all of it",
    "fenced": "it is fenced",
    "promoted": "Redis and Sentinels of the standby have taken over",
    "answered": "a client's message was answered there",
    "dns": "the name leads there",
}


def plan(hosts, to, gone):
    """What a failover would do, or why it is refused.

    :param hosts: by name, each with ``datacenter``, ``groups``, ``reached`` (bool), ``seen`` (result of ``redis_datacenter``, None for hosts that
        did not give one), ``gateways`` (list of ``id`` and ``healthy``), ``fenced`` (bool) and ``contact`` (the last one that the host had with the
        active primary: its ``offset`` and the host's ``own``; None without any)
    :param to: name of the datacenter that is to have the conversations
    :param gone: whether the operator says that the active one is gone
    :returns: dict with ``problem`` (sentence or empty), ``says`` (what is done), ``epoch``, ``active`` (name of the datacenter that is left, or
        None), ``leaves`` (its hosts), ``rests`` (those that are brought to rest before) and ``reached`` (hosts of ``to`` that take part)
    """
    here = {name: host for name, host in hosts.items() if host["datacenter"] == to}
    reached = sorted(name for name, host in here.items() if host["reached"])
    result = {"problem": "", "says": "", "epoch": 0, "active": None, "leaves": [], "rests": [], "reached": reached}
    seen = next((host["seen"] for host in here.values() if host["reached"] and host["seen"]), None)
    if seen is None:
        return {**result, "problem": f"No Redis host of {to} could be asked ({', '.join(sorted(set(here) - set(reached))) or 'none'} not reached)."}
    claim = seen["claim"]
    if claim is None:
        return {**result, "problem": f"No datacenter has claimed the conversations yet: run site.yml for the first one, then dr_rollout.yml -e dr_to={to}."}
    if claim["datacenter"] == to:
        says = f"{to} has the conversations already (epoch {claim['epoch']}); what an earlier run has left undone is made good."
        return {**result, "says": says, "epoch": claim["epoch"]}
    active = claim["datacenter"]
    leaves = sorted(name for name, host in hosts.items() if host["datacenter"] == active)
    result = {**result, "epoch": claim["epoch"] + 1, "active": active, "leaves": leaves}
    healthy = [one["id"] for host in here.values() for one in host["gateways"] if one["healthy"]]
    if not healthy:
        return {**result, "problem": f"No gateway of {to} runs, so nobody would answer there: see status.yml, and run dr_rollout.yml -e dr_to={to}."}
    if not gone and _half_fenced(active, here, hosts, seen):
        says = f"An earlier run had begun to fence {active}, when {to} had all that was there; it is fenced to the end. Serving there: {', '.join(healthy)}."
        return {**result, "says": says}
    result["rests"] = [] if gone else leaves
    problem = (_not_gone if gone else _not_planned)(active, to, hosts, seen)
    lost = "what it had not sent to the standby is given up" if gone else "nothing is lost"
    says = f"{active} is left for {to}, {'as gone' if gone else 'as planned'}: {lost}. Serving there: {', '.join(healthy)}."
    return {**result, "problem": problem, "says": says}


def _half_fenced(active, here, hosts, seen):
    """Whether a planned failover ended while it fenced the active datacenter, so that no primary is left there to catch up with.

    It had fenced nobody before the standby had everything, and what the standby has seen last must say the same.
    """
    begun = any(host["fenced"] for host in hosts.values() if host["datacenter"] == active)
    contacts = [host["contact"] for host in here.values() if host["contact"] and host["contact"]["own"] is not None]
    return begun and seen["behind"] is None and any(one["own"] >= one["offset"] for one in contacts)


def _not_planned(active, to, hosts, seen):
    """Why a planned failover is refused; empty when it is not."""
    silent = sorted(name for name, host in hosts.items() if host["datacenter"] in (active, to) and not host["reached"])
    if silent:
        return (
            f"A planned failover needs all hosts of {active} and {to}, and {', '.join(silent)} cannot be reached. Where {active} is gone for good, "
            f"-e dr_gone=true gives up what it had not sent to {to} yet."
        )
    if seen["behind"] is None:
        return f"No Redis of {active} is a primary with linked replicas as seen from {to}, so nobody knows whether {to} has all of it: see status.yml."
    if seen["behind"] > MAX_BEHIND:
        return f"{to} is {seen['behind']} bytes behind {active}: wait until it has caught up."
    return ""


def _not_gone(active, to, hosts, seen):
    """Why a datacenter does not count as gone; empty when it does."""
    answers = [f"{node['address']}:{node['port']}" for node in seen["seen"].get(active, []) if not node.get("error")]
    if answers:
        return (
            f"{active} is not gone: its Redis at {', '.join(answers)} answers to {to}. Without dr_gone=true nothing is lost; if its hosts cannot be "
            f"reached otherwise, cut it off from {to} first."
        )
    return ""


def plan_back(hosts, to):
    """What a fail-back would do first, or why it is refused.

    :param hosts: as :func:`plan` takes them, with ``fenced`` (bool) instead of ``gateways``
    :param to: name of the datacenter that is to be joined again
    :returns: dict with ``problem`` (sentence or empty), ``says``, ``active`` (name of the datacenter that it is joined to, or None) and ``emptied``
        (hosts whose data is kept aside)
    """
    result = {"problem": "", "says": "", "active": None, "emptied": []}
    here = {name: host for name, host in hosts.items() if host["datacenter"] == to and FENCED & set(host["groups"])}
    seen = next((host["seen"] for host in hosts.values() if host["datacenter"] != to and host["seen"] and host["seen"]["role"] == "active"), None)
    silent = sorted(name for name, host in here.items() if not host["reached"])
    if silent:
        return {**result, "problem": f"{', '.join(silent)} cannot be reached; all hosts of {to} are joined together."}
    if seen is None:
        return {**result, "problem": f"No other datacenter has the conversations, as far as its hosts answer, so {to} has nobody to be joined to."}
    active, epoch = seen["claim"]["datacenter"], seen["claim"]["epoch"]
    fenced = sorted(name for name, host in here.items() if host["fenced"])
    answers = [f"{node['host']} ({node['role']})" for node in seen["seen"].get(to, []) if not node.get("error") and node["role"] == "master"]
    if answers:
        return {
            **result,
            "problem": f"{', '.join(answers)} of {to} runs with what it had before {active} took over (epoch {epoch}): it has to be fenced first, with "
            f"openclaw-datacenter fence on its hosts.",
        }
    kept = f"What {', '.join(fenced)} had is kept aside there" if fenced else "None of its hosts is fenced, so nothing is emptied"
    return {**result, "says": f"{to} is joined to {active} (epoch {epoch}). {kept}.", "active": active, "emptied": fenced}


def report(began, moments, facts):
    """What a failover took, as JSON data.

    :param began: seconds since 1970 at which it was begun
    :param moments: of :data:`STEPS`, seconds since 1970 at which each was done; None for those that were not
    :param facts: ``to``, ``active`` (None when an earlier run had left it), ``epoch``, ``gone``, ``offset`` (of the server that was promoted, None
        when an earlier run did it), ``contact`` (the last one that the standby had with the active datacenter: ``seen`` (text), ``offset`` of
        the primary, ``own`` offset; None when unknown) and ``unfenced`` (hosts)
    :returns: dict with these, ``steps`` (``step``, ``what``, ``seconds`` since the beginning), ``rto_seconds`` (until the first good answer) with
        ``detection_seconds`` before the beginning, and ``rpo``: ``turns`` (0, or None when only the old datacenter's data can tell), ``bytes`` known to
        be missing, ``seconds`` of which nothing is known; all None when an earlier run had left it
    """
    steps = [{"step": name, "what": STEPS[name], "seconds": round(moments[name] - began, 2)} for name in STEPS if moments.get(name)]
    contact = facts["contact"]
    since = _moment(contact["seen"]) if contact and facts["gone"] else None
    lacks = None
    if contact and facts["offset"] is not None:
        lacks = max(0, contact["offset"] - facts["offset"])
    rpo = {"turns": 0, "bytes": 0, "seconds": 0.0}
    if facts["active"] is None:
        rpo = dict.fromkeys(rpo)  # the run that left it has told
    elif facts["gone"]:
        rpo = {"turns": None, "bytes": lacks, "seconds": None if since is None else round((moments.get("fenced") or began) - since, 2)}
    answered = moments.get("answered")
    return {
        **facts,
        "began": _clock(began),
        "steps": steps,
        "detection_seconds": None if since is None else round(began - since, 2),
        "rto_seconds": None if answered is None else round(answered - (since if since is not None else began), 2),
        "rpo": rpo,
    }


def paragraph(found):
    """A report as an operator reads it."""
    left = f"in place of {found['active']}" if found["active"] else "where an earlier run had begun it"
    rto = "not known" if found["rto_seconds"] is None else f"{found['rto_seconds']:.1f} s until a client's message was answered"
    if found["detection_seconds"] is not None:
        rto += f", {found['detection_seconds']:.1f} s of them before this run began"
    rpo = "no turn, both had the same offset"
    if found["active"] is None:
        rpo = "as the run that left the other one has told"
    elif found["gone"]:
        missing = "an unknown number of bytes" if found["rpo"]["bytes"] is None else f"at least {found['rpo']['bytes']} bytes"
        silence = "" if found["rpo"]["seconds"] is None else f", and what it wrote in the {found['rpo']['seconds']:.1f} s since it was last seen"
        rpo = f"{missing} that {found['active']} had written{silence}; dr_failback.yml counts the turns in what it left"
    open_ones = f" Not fenced, since they could not be reached: {', '.join(found['unfenced'])}." if found["unfenced"] else ""
    return f"{found['to']} has the conversations (epoch {found['epoch']}), {left}. RTO: {rto}. RPO: {rpo}.{open_ones}"


def page(found):
    """The report as one HTML page: the paragraph, and the steps as bars over time."""
    width, left, row = 900, 120, 30
    end = max((step["seconds"] for step in found["steps"]), default=0) or 1
    parts, before = [], 0.0
    for number, step in enumerate(found["steps"]):
        top = 8 + number * row
        start, length = left + before / end * (width - left - 70), (step["seconds"] - before) / end * (width - left - 70)
        parts.append(f'<text x="0" y="{top + 15}">{step["step"]}</text>')
        parts.append(
            f'<rect x="{start:.1f}" y="{top:.1f}" width="{max(length, 1):.1f}" height="20" fill="#4878a8"><title>{html.escape(step["what"])}</title></rect>'
        )
        parts.append(f'<text x="{start + max(length, 1) + 6:.1f}" y="{top + 15}">{step["seconds"]:g} s</text>')
        before = step["seconds"]
    rows = "".join(f"<tr><td>{step['step']}</td><td>{html.escape(step['what'])}</td><td>{step['seconds']:g}</td></tr>" for step in found["steps"])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Failover</title><style>\n'
        "body{font:15px sans-serif;margin:2em;max-width:1000px;color:#222;background:#fff}td,th{text-align:left;padding:.2em .8em}"
        f"\n</style></head><body>\n<h1>Failover to {html.escape(found['to'])}</h1>\n"
        f"<p>{html.escape(found['began'])}</p>\n<p>{html.escape(paragraph(found))}</p>\n"
        f'<svg viewBox="0 0 {width} {16 + row * len(found["steps"])}" font-size="13" font-family="sans-serif" role="img">{"".join(parts)}</svg>\n'
        f"<table><tr><th>step</th><th>by then</th><th>seconds</th></tr>{rows}</table>\n</body></html>\n"
    )


def _moment(text):
    return datetime.datetime.fromisoformat(text).timestamp()


def _clock(moment):
    return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc).isoformat(sep=" ", timespec="seconds")
