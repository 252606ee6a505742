# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bringing clients to a datacenter step by step while its error budget is watched: what comes next, and why. Pure; a state is JSON."""

from __future__ import annotations

import math
import re

from ansible_collections.openclaw.ha.plugins.module_utils.balancer_server import BACKEND, ELSEWHERE
from ansible_collections.openclaw.ha.plugins.module_utils.dns_weights import share, spread, text_of

#: The short window is this part of the long one, as is usual for burn rates: a burn that has ended does not send clients away.
SHORT = 12
#: Windows that a weight may take, where one does not suffice for a judgement.
PATIENCE = 3
#: Looks in a row without the balancers that are needed.
SILENT = 2
#: Failures that are a burn at least: one failed request is none, however few there were.
FEWEST = 2
_LINE = re.compile(r'^haproxy_backend_(http_requests|http_responses|server_aborts|client_aborts)_total\{([^}]*)\} (\d+)', re.MULTILINE)


def counts(metrics, client_aborts=True):
    """``{"requests": .., "failures": ..}`` of HAProxy's metrics since it was started; None where the text has no such counts.

    Requests that another datacenter answers for this one count as its own: its clients came here. Failures are answers of 5xx, those of the balancer itself
    included, answers that a replica broke off, and those for which the client did not wait.
    """
    found = {}
    for name, labels, value in _LINE.findall(metrics or ""):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if pairs.get("proxy") in (BACKEND, ELSEWHERE) and pairs.get("code", "5xx") == "5xx":
            found[name] = found.get(name, 0) + int(value)
    if not {"http_requests", "http_responses", "server_aborts", "client_aborts"} <= set(found):
        return None
    failures = found["http_responses"] + found["server_aborts"] + (found["client_aborts"] if client_aborts else 0)
    return {"requests": found["http_requests"], "failures": failures}


def settings_problem(settings, balancers, weights, ttl):
    """A sentence about settings with which no ramp can be made; empty when one can.

    :param settings: ``to``, ``start``, ``step``, ``window``, ``interval``, ``slo``, ``burn_rate``, ``minimum``
    :param balancers: those of the target, as in the topology
    :param weights: those in force
    """
    to = settings["to"]
    if to not in weights:
        return f"dns_ramp_to: found {to!r}; allowed {', '.join(weights)}; name one of these datacenters."
    for key, least, most in (("start", 1, 100), ("step", 1, 100)):
        if not isinstance(settings[key], int) or not least <= settings[key] <= most:
            return f"dns_ramp_{key}: found {settings[key]!r}; allowed whole numbers from {least} to {most}; correct it."
    if not 0 < settings["slo"] < 100:
        return f"dns_ramp_slo: found {settings['slo']:g}; allowed more than 0 and less than 100, as an error budget is what is left; correct it."
    for key in ("burn_rate", "minimum", "interval"):
        if settings[key] <= 0:
            return f"dns_ramp_{'minimum_requests' if key == 'minimum' else key}: found {settings[key]:g}; allowed more than 0; correct it."
    least = max(2 * ttl, 2 * settings["interval"])
    if settings["window"] < least:
        return (
            f"dns_ramp_window: found {settings['window']:g}; allowed at least {least:g} s, twice dns_ttl ({ttl}) and twice dns_ramp_interval "
            f"({settings['interval']:g}), because clients follow a new weight only after the time to live; make it longer."
        )
    if not balancers:
        return f"openclaw_balancers: found none in {to}; allowed at least one, which counts requests and failures; add it."
    others = [node["host"] for node in balancers if node["engine"] != "haproxy"]
    if others:
        return (
            f"balancer_engine: found nginx on {', '.join(others)}; allowed haproxy for a ramp, because nginx does not count failures; "
            f"set weights step by step with dns_set.yml and watch them yourself, or change the engine."
        )
    return ""


def begin(settings, balancers, weights, ramp_from, ttl):
    """The first state.

    :param ramp_from: the weights before a ramp that was interrupted; None where none is under way
    :returns: dict with ``problem`` (then nothing else counts), ``action`` (``set``, ``watch`` or ``done``; later ``back``, too), ``weights`` (to be set for
        ``set`` and ``back``), ``before``, ``percent``, ``line`` (for people) and what the next look needs
    """
    problem = settings_problem(settings, balancers, weights, ttl)
    to, percent = settings["to"], share(weights, settings["to"])
    # A ramp in the other direction was interrupted: where it had come to, this one begins.
    goes_on = not problem and ramp_from is not None and set(ramp_from) == set(weights) and percent > share(ramp_from, to)
    state = {
        "problem": problem,
        "settings": settings,
        "needed": 1 if balancers and all(node.get("vip") for node in balancers) else len(balancers),
        "before": ramp_from if goes_on else weights,
        "weights": weights,
        "percent": percent,
        "action": "watch",
        "why": "",
        "line": "",
        "since": None,
        "silent": 0,
        "counts": {},
        "looks": [],
    }
    if problem:
        return state
    if percent >= 100 and not goes_on:
        return _act(state, "done", f"{to} gets all clients already.")
    if percent < settings["start"]:
        return _set(state, settings["start"], "first step")
    return _act(state, "watch", f"{to} has {percent} % already: a whole window of it first")


def look(state, answers, at):
    """The state after one look at the target's balancers.

    :param answers: host -> what :func:`counts` returned
    :param at: seconds since 1970
    """
    settings, requests, failures, kept = state["settings"], 0, 0, dict(state["counts"])
    for host, now in answers.items():
        if now is None:
            continue
        last = kept.get(host, now)
        # A balancer that was started anew counts from 0.
        last = last if all(now[key] >= last[key] for key in now) else dict.fromkeys(now, 0)
        requests, failures = requests + now["requests"] - last["requests"], failures + now["failures"] - last["failures"]
        kept[host] = now
    answering = [host for host, now in answers.items() if now is not None]
    state = {
        **state,
        "counts": kept,
        "since": at if state["since"] is None else state["since"],
        "silent": 0 if len(answering) >= state["needed"] else state["silent"] + 1,
        "looks": [*state["looks"], {"at": at, "percent": state["percent"], "requests": requests, "failures": failures}],
    }
    long, short = _sum(state, settings["window"]), _sum(state, settings["window"] / SHORT)
    state["looks"][-1]["burn"] = long["burn"]
    state["line"] = (
        f"{settings['to']} at {state['percent']} % for {at - state['since']:.0f} s: {long['requests']} requests, {long['failures']} failed, "
        f"burn rate {_shown(long['burn'])} (short window {_shown(short['burn'])}), limit {settings['burn_rate']:g}"
    )
    return _judge(state, long, short, answering, answers)


def _judge(state, long, short, answering, answers):
    settings, passed = state["settings"], state["looks"][-1]["at"] - state["since"]
    to, limit, window = settings["to"], settings["burn_rate"], settings["window"]
    if state["silent"] >= SILENT:
        gone = ", ".join(host for host in answers if host not in answering)
        return _back(state, f"{gone} gave no counts {SILENT} times in a row, so nobody knows how the clients of {to} fare.")
    burns = long["failures"] >= FEWEST and long["requests"] >= settings["minimum"] and long["burn"] > limit
    if burns and (short["burn"] or 0) > limit:
        return _back(
            state,
            f"{long['failures']} of {long['requests']} requests failed there at {state['percent']} %: the budget of {settings['slo']:g} % burns "
            f"{long['burn']:.1f} times as fast as it may (short window {short['burn']:.1f}, limit {limit:g}).",
        )
    if passed < window or state["silent"]:
        return _act(state, "watch", "")
    if burns or long["requests"] < settings["minimum"]:
        if passed < PATIENCE * window:
            return _act(state, "watch", "")
        if burns:
            return _back(state, f"after {passed:.0f} s at {state['percent']} % the last {window:g} s still burn {long['burn']:.1f} times as fast as they may.")
        return _back(
            state,
            f"in the last {window:g} s there were {long['requests']} requests ({long['failures']} failed), too few to judge (dns_ramp_minimum_requests "
            f"{settings['minimum']}), after {passed:.0f} s at {state['percent']} %.",
        )
    if state["percent"] >= 100:
        return _act(state, "done", f"{to} gets all clients, and a whole window of it was within the budget.")
    return _set(state, min(100, state["percent"] + settings["step"]), f"a window of {window:g} s at {state['percent']} % was within the budget")


def _sum(state, seconds):
    """Requests, failures and burn rate of the last seconds, no further back than the present weight."""
    now = state["looks"][-1]["at"]
    seen = [one for one in state["looks"] if one["at"] >= state["since"] and one["at"] > now - seconds]
    requests, failures = sum(one["requests"] for one in seen), sum(one["failures"] for one in seen)
    # An answer that failed may be to a request of the window before, so there may be more of them than requests.
    budget = 1 - state["settings"]["slo"] / 100
    return {"requests": requests, "failures": failures, "burn": min(failures / max(requests, failures), 1) / budget if requests or failures else None}


def _shown(burn):
    return "-" if burn is None else f"{burn:.1f}"


def _act(state, action, why):
    return {**state, "action": action, "why": why}


def _set(state, percent, why):
    weights = spread(state["before"], state["settings"]["to"], percent)
    return {**state, "action": "set", "why": why, "weights": weights, "percent": percent, "since": None}


def _back(state, why):
    return {**state, "action": "back", "why": why, "weights": state["before"]}


def most_looks(state):
    """Looks after which every ramp has ended: each is at least an interval after the one before."""
    settings = state["settings"]
    # One more than there are steps: a ramp may begin with a window of what it finds.
    windows = math.ceil((100 - min(settings["start"], state["percent"] or 100)) / settings["step"]) + 2
    return windows * (math.ceil(PATIENCE * settings["window"] / settings["interval"]) + SILENT + 1)


def summary(state, failure, is_back, at):
    """The report as JSON data; times are seconds since the first look.

    :param failure: why it was stopped; empty when it was not
    :param is_back: whether the weights before it are in force again
    """
    looks = state["looks"]
    start = looks[0]["at"] if looks else at
    outcome = "reached" if state["action"] == "done" and not failure else "went back" if is_back else "failed"
    return {
        "to": state["settings"]["to"],
        "outcome": outcome,
        "why": " ".join((failure or state["why"]).split()),
        "before": text_of(state["before"]),
        "weights": text_of(state["before"] if is_back else state["weights"]),
        "slo": state["settings"]["slo"],
        "limit": state["settings"]["burn_rate"],
        "began": start,
        "looks": [{**one, "at": round(one["at"] - start, 1)} for one in looks],
    }
