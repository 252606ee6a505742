# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``gateway_jobs``: what the gateways do by the clock. Every replica knows all of them, and of each time one replica makes something. Pure."""

from __future__ import annotations

import re

from ansible_collections.openclaw.ha.plugins.module_utils import channels

_KEYS = ("name", "schedule", "timezone", "message", "deliver")
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,47}")
#: Five fields as cron has them; OpenClaw says what is wrong within one.
_FIELD = re.compile(r"[0-9A-Za-z*/,?#L-]+")
_TIMEZONE = re.compile(r"[A-Za-z]+([_+/-][A-Za-z0-9]+)*")


class JobError(ValueError):
    """``gateway_jobs`` makes no configuration; the text names the entry, what was found, what is allowed and what to do."""


def problems(entries, listed):
    """Say in one sentence each what is wrong with ``gateway_jobs``.

    :param entries: list of dicts with ``name``, ``schedule`` (five fields of cron), ``timezone`` (default ``UTC``), ``message`` (to the model) and
        ``deliver`` (may be left out; ``account``, as ``type/account`` of ``gateway_channels``, and ``to``)
    :param listed: ``gateway_channels``, sound
    """
    if not isinstance(entries, list):
        return [f"gateway_jobs: found a {type(entries).__name__}; allowed a list of jobs; correct it."]
    able = [one["id"] for one in channels.accounts(listed) if one["receivers"] == channels.EVERY]
    found, seen = [], {}
    for number, entry in enumerate(entries, 1):
        where = f"gateway_jobs entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not _NAME.fullmatch(entry["name"]):
            found.append(f"{where}: found no name, or one with other characters; allowed up to 48 of a-z, 0-9, - and _; name it.")
            continue
        where += f" ({entry['name']})"
        same = seen.setdefault(entry["name"], number)
        if same != number:
            found.append(f"{where}: found the name of entry {same} again; allowed a name of its own for each; rename one.")
        unknown = [str(key) for key in entry if key not in _KEYS]
        if unknown:
            found.append(f"{where}: found {', '.join(unknown)}; allowed {', '.join(_KEYS)}; correct it.")
        schedule = entry.get("schedule")
        fields = schedule.split() if isinstance(schedule, str) else []
        if len(fields) != 5 or not all(_FIELD.fullmatch(field) for field in fields):
            found.append(f"{where}: found schedule {schedule!r}; allowed five fields as in crontab, such as 0 8 * * 1-5; correct it.")
        zone = entry.get("timezone", "UTC")
        if not isinstance(zone, str) or not _TIMEZONE.fullmatch(zone):
            found.append(f"{where}: found timezone {zone!r}; allowed one such as UTC or Europe/Vienna; correct it.")
        message = entry.get("message")
        if not isinstance(message, str) or not message.strip():
            found.append(f"{where}: found no message; allowed a text for the model; write one.")
        found += [f"{where}: {text}" for text in _wrong_delivery(entry.get("deliver"), able)]
    return found


def _wrong_delivery(deliver, able):
    if deliver is None:
        return
    if not isinstance(deliver, dict) or set(deliver) != {"account", "to"}:
        yield "found deliver without account and to, or with more; allowed both of them; correct it."
    elif deliver["account"] not in able:
        allowed = ", ".join(able) or "none, as gateway_channels has no such account"
        yield f"found deliver.account {deliver['account']!r}; allowed an account that every replica has ({allowed}); change it."
    elif not isinstance(deliver["to"], (str, int)) or isinstance(deliver["to"], bool) or not str(deliver["to"]).strip():
        yield "found deliver.to that is no id; allowed an id of the channel, such as 4242; correct it."


def config(entries, listed):
    """The jobs as the plugin of the gateways takes them.

    :raises JobError: see :func:`problems`
    """
    wrong = problems(entries, listed)
    if wrong:
        raise JobError(" ".join(wrong))
    return [
        {
            "key": entry["name"],
            "name": entry["name"],
            "expr": " ".join(entry["schedule"].split()),
            "tz": entry.get("timezone", "UTC"),
            "message": entry["message"],
            **({"delivery": _delivery(entry["deliver"])} if entry.get("deliver") else {}),
        }
        for entry in entries
    ]


def _delivery(deliver):
    kind, account = deliver["account"].split("/", 1)
    return {"mode": "announce", "channel": kind, "accountId": account, "to": str(deliver["to"])}
