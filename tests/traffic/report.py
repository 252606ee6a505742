# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a load shows, from its requests alone. Pure."""

from __future__ import annotations

import collections
import dataclasses
import math

from .evidence import CUT, FAILED, GET, KINDS, MESSAGE, OK, STREAM, UNSENT

COLUMNS = ("fault", "engine", "GETs sent / failed", "messages sent / failed / doubled / lost", "streams sent / failed / cut",
           "out of rotation after", "longest gap", "note")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Visit:
    """A fault: when it came, when its repair began, when that was seen to be done, and which replicas it made sick.

    ``broke``: when it had come for certain; a process is killed some time between ``began`` and this.
    ``changes``: [moment, replica, state, weight] whenever the balancer changed its mind, from before the load on; empty with nginx.
    """

    name: str
    began: float
    repaired: float
    healed: float
    replicas: tuple[str, ...] = ()
    changes: tuple[list, ...] = ()
    broke: float = 0.0


def percentile(values, share):
    """The smallest value that at least this share of them does not exceed; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def longest_gap(requests):
    """The longest time without a good answer between the first request and the last: (seconds, when it began)."""
    if not requests:
        return 0.0, None
    moments = [min(one.due for one in requests)] + sorted(one.ended for one in requests if one.outcome == OK)
    moments.append(max(moments[-1], max(one.due for one in requests)))
    return max((later - earlier, earlier) for earlier, later in zip(moments, moments[1:], strict=False))


def was_in_flight(request, visit):
    """Whether a stream was lost on a replica that had it when it became sick, before a byte of the answer: cut as much as one that had begun."""
    if visit is None or request.kind != STREAM or request.outcome != FAILED or request.replica not in visit.replicas:
        return False
    return request.began <= max(visit.began, visit.broke) and visit.began <= request.ended


def of_kind(requests, visit=None):
    """Figures of one kind of requests; times in seconds."""
    requests = [dataclasses.replace(one, outcome=CUT) if was_in_flight(one, visit) else one for one in requests]
    good = [one for one in requests if one.outcome == OK]
    gap, gap_began = longest_gap(requests)
    return {
        "sent": sum(one.outcome != UNSENT for one in requests),
        "ok": len(good),
        "failed": sum(one.outcome == FAILED for one in requests),
        "reasons": dict(collections.Counter(one.error for one in requests if one.outcome in (FAILED, UNSENT)).most_common()),
        "cut": [_named(one, visit) for one in requests if one.outcome == CUT],
        "unsent": sum(one.outcome == UNSENT for one in requests),
        "repeated_by_balancer": sum(one.repeated for one in requests),
        **{f"p{share}": _rounded(percentile([one.seconds for one in good], share / 100)) for share in (50, 95, 99)},
        "first_byte_p50": _rounded(percentile([one.first for one in good if one.first is not None], 0.5)),
        "longest_gap": _rounded(gap),
        "longest_gap_at": _since(gap_began, visit),
        "by_replica": dict(sorted(collections.Counter(one.replica or "unknown" for one in requests if one.outcome != UNSENT).items())),
    }


def met(request, replicas, away=None):
    """Whether a request met one of these replicas: it answered, a log names it, or a balancer had to send it again.

    ``away``: when the balancer began to avoid them; what it sent again after that met another one.
    """
    named = request.replica in replicas or bool(set(replicas) & set(request.tried))
    return named or request.repeated and (away is None or request.began <= away)


def avoided(visit):
    """When the balancer last began to avoid each of the sick replicas, at the latest: (moment, or None when it did not or nobody knows).

    A replica is avoided while it is not UP, or has a hundredth of its weight.
    """
    moments = []
    for name in visit.replicas:
        known = [(moment, state != "UP" or weight <= 1) for moment, replica, state, weight in visit.changes if replica == name]
        before = [away for moment, away in known if moment < visit.began][-1:]
        then = [(moment, away) for moment, away in known if visit.began <= moment < visit.repaired]
        steps = [(visit.began, away) for away in before] + then
        begun = [moment for number, (moment, away) in enumerate(steps) if away and (number == 0 or not steps[number - 1][1])]
        moments.append(begun[-1] if begun and steps[-1][1] else None)
    return None if not moments or None in moments else max(moments)


def of_fault(requests, visit):
    """What a fault did. Sick replicas are out of rotation after the last request that met one of them, and once the balancer says so.

    Where no request met one and no balancer tells, it is not known.
    """
    during = [one for one in requests if visit.began <= one.began < visit.repaired]
    away = avoided(visit)
    met_then = [one.began for one in during if visit.replicas and met(one, visit.replicas, away)]
    out = max(met_then + ([away] if away is not None else []), default=None)
    bad = [one for one in requests if one.outcome in (FAILED, CUT)]

    def count(chosen):
        return {kind: sum(one.kind == kind for one in chosen) for kind in KINDS}

    result = {
        "name": visit.name,
        "replicas": list(visit.replicas),
        "seconds": _rounded(visit.repaired - visit.began),
        "healing_seconds": _rounded(visit.healed - visit.repaired),
        "out_of_rotation": None if out is None else _rounded(out - visit.began),
        "met_while_sick": len(met_then),
        "avoided_by_balancer_after": _since(away, visit),
        "bad_before_out": count([one for one in bad if out is not None and visit.began <= one.ended and one.began <= out]),
        "bad_after_out": count([one for one in bad if out is not None and one.began > out]),
        "bad_during": count([one for one in bad if visit.began <= one.ended and one.began < visit.healed]),
        "bad_otherwise": count([one for one in bad if one.ended < visit.began or one.began >= visit.healed]),
        "answered_during": dict(sorted(collections.Counter(one.replica for one in during if one.outcome == OK and one.replica).items())),
        "said_during": dict(collections.Counter(one.said for one in during if one.said).most_common()),
    }
    back = [min((one.began for one in requests if one.outcome == OK and one.replica == name and one.began >= visit.repaired), default=None)
            for name in visit.replicas]  # fmt: skip
    result["back_after"] = _rounded(max(back) - visit.repaired) if back and None not in back else None
    return result


def report(requests, visit=None):
    """The whole report as JSON data: one part for each kind of requests, and one for the fault."""
    kinds = {kind: of_kind([one for one in requests if one.kind == kind], visit) for kind in KINDS}
    return kinds | {"fault": of_fault(requests, visit) if visit else None}


def row(result):
    """A run's result as one line of a Markdown table; see COLUMNS."""
    traffic, counts = result["traffic"], result["history"]["counts"]
    get, message, stream, fault = (traffic[name] for name in (GET, MESSAGE, STREAM, "fault"))
    out = fault and fault["out_of_rotation"]
    cells = (
        result["name"],
        result["engine"],
        f"{get['sent']} / {get['failed']}",
        f"{message['sent']} / {message['failed']} / {counts['doubled']} / {counts['lost']}",
        f"{stream['sent']} / {stream['failed']} / {len(stream['cut'])}",
        "" if out is None else f"{out:.1f} s",
        f"{get['longest_gap']:.1f} s",
        note(result),
    )
    return f"| {' | '.join(cells)} |"


def heading():
    return f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def note(result):
    """Reasons of failures, what was cut, and what else a run found."""
    said = []
    for kind in KINDS:
        found = result["traffic"][kind]
        said += [f"{kind}: {number} x {reason}" for reason, number in found["reasons"].items()]
        places = collections.Counter(one["replica"] or "an unknown replica" for one in found["cut"])
        said += [f"{number} cut on {place}" for place, number in places.items()]
    fault = result["traffic"]["fault"]
    if fault and fault["back_after"] is not None:
        said.append(f"back {fault['back_after']:.1f} s after the repair began")
    said += [f"{number} {kind}" for kind, number in result["history"]["counts"].items() if number and kind not in ("doubled", "lost")]
    said += [f"{name} {value}" for name, value in result.get("vip", {}).items()]
    return "; ".join(said)


def _named(request, visit):
    return {
        "id": request.id,
        "replica": request.replica,
        "error": request.error,
        "chunks": request.chunks,
        "began_at": _since(request.began, visit),
        "after": _rounded(request.ended - request.began),
    }


def _since(moment, visit):
    return None if moment is None or visit is None else _rounded(moment - visit.began)


def _rounded(value):
    return None if value is None else round(value, 3)
