# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The decisions: who saves, what is due, what a snapshot must hold, what differs. Pure."""

from __future__ import annotations

import re

#: Keys that hold conversations.
CONVERSATIONS = "oc:conv:"
#: Differences that are named one by one; the rest is counted.
MOST_NAMED = 5

#: What restic says -> what that is. The first match counts.
_ERRORS = (
    ("wrong_password", r"wrong password or no key found"),
    ("locked", r"repository is already locked|unable to create lock in backend: repository is already"),
    ("disk_full", r"no space left on device|disk quota exceeded"),
    (
        "damaged",
        r"does not match id|ciphertext verification failed|hash does not match|hash mismatch|invalid data returned|repository contains errors"
        r"|[Pp]ack .* (contains \d+ errors|is damaged)|unable to load index|invalid encryption header|not referenced in any index|truncated",
    ),
    ("missing_snapshot", r"no matching ID found|no snapshot found|multiple IDs with prefix"),
    ("missing_repository", r"(?s)unable to open config file.*(no such file or directory|does not exist|NoSuchKey|NoSuchBucket|\(?404\)?)"),
    ("unreachable", r"unable to open config file|connection refused|no such host|i/o timeout|network is unreachable|permission denied|Fatal: unable to open"),
)
#: What that means for an operator: what was found, and what to do.
_WORDS = {
    "wrong_password": "its password is another one; set {password} to the one that it was made with",
    "locked": "it stayed locked; see who works on it with 'restic list locks', and take a lock away only when nobody does",
    "disk_full": "no space is left; free some, there or on this host",
    "damaged": "it is damaged; restore from the off-site copy, and see 'restic check --read-data' for what is lost",
    "missing_snapshot": "it has no such snapshot; see 'openclaw-backup list' for those that it has",
    "missing_repository": "there is no repository; see that it is mounted and written right, or make it with site.yml",
    "unreachable": "it cannot be reached; see network, credentials and {variable}",
    "failed": "restic failed",
}


class Problem(RuntimeError):
    """Something was not done; the text is one sentence for people. ``kind`` is its short name."""

    def __init__(self, text, kind="failed"):
        super().__init__(text)
        self.kind = kind


def where(node):
    return f"{node['address']}:{node['port']}"


def elect(nodes, me, primary, online):
    """Who saves Redis: ``(host, why)``. Every host that asks the same primary comes to the same answer.

    :param nodes: the site's Redis servers, in the inventory's order, each with ``host``, ``address``, ``port``
    :param me: this host
    :param primary: ``address:port`` of the primary that this host's server follows or is
    :param online: ``address:port`` of each replica that the primary calls online, or None when it did not answer
    """
    if online is None:
        return me, f"the primary {primary} does not answer, so every replica saves: better twice than not at all"
    for node in nodes:
        if where(node) in online and where(node) != primary:
            return node["host"], "it is the first of the inventory's replicas that the primary calls online"
    for node in nodes:
        if where(node) == primary:
            return node["host"], "it is the primary, and no replica is online"
    return me, f"the primary {primary}, which is of another datacenter, calls no server of this one online"


def online_replicas(info):
    """``address:port`` of each replica that a primary's INFO calls online."""
    rows = (value for name, value in info.items() if re.fullmatch(r"slave\d+", name) and isinstance(value, dict))
    return {f"{row['ip']}:{row['port']}" for row in rows if row.get("state") == "online"}


def keys_of(info):
    """Number of keys in all databases, from INFO."""
    return sum(value["keys"] for name, value in info.items() if re.fullmatch(r"db\d+", name) and isinstance(value, dict))


def kind_of(code, text):
    """The short name of what restic failed with; empty when it did not fail."""
    if code == 0:
        return ""
    return next((kind for kind, pattern in _ERRORS if re.search(pattern, text)), "failed")


def sentence(kind, name, location, text=""):
    """One sentence about a repository that cannot be worked with.

    :param name: ``backup_repository`` or ``backup_offsite_repository``
    """
    password = name.replace("repository", "password")
    words = _WORDS[kind].format(password=password, variable=name)
    last = last_line(text) if kind in ("failed", "unreachable", "damaged", "disk_full") else ""
    return f"{name} {location}: {words}{f' ({last})' if last else ''}."


def last_line(text):
    """What restic gave as the reason: its last line that begins with Fatal, else its last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal")]
    return ((fatal or lines or [""])[-1]).rstrip(".")[:300]


def redact(text, secrets):
    """A text without secrets, and without the user and password of an address."""
    for secret in sorted((one for one in secrets if one and len(one) > 2), key=len, reverse=True):
        text = text.replace(secret, "(secret)")
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1", text)


def choose(snapshots, wanted):
    """The snapshot that is meant by ``latest`` or by (the beginning of) an ID.

    :param snapshots: as ``restic snapshots --json`` gives them
    :raises Problem: when there is none, or more than one
    """
    if not snapshots:
        raise Problem("it has no snapshot of that kind; see 'openclaw-backup list', and make one with backup.yml", "missing_snapshot")
    ordered = sorted(snapshots, key=lambda one: one["time"])
    if wanted == "latest":
        return ordered[-1]
    found = [one for one in ordered if one["id"].startswith(wanted)] if re.fullmatch(r"[0-9a-f]{4,64}", wanted) else []
    if len(found) != 1:
        known = ", ".join(f"{one['id'][:8]} ({one['time'][:16]})" for one in ordered[-MOST_NAMED:])
        count = "no snapshot" if not found else f"{len(found)} snapshots"
        raise Problem(f"found {count} {wanted!r}; allowed are latest or the first 8 digits of one, the newest being {known}", "missing_snapshot")
    return found[0]


def next_part(last, parts):
    """Which part of the repository the next check reads, from 1 on: all of it is read once in ``parts`` checks."""
    return last % parts + 1 if isinstance(last, int) else 1


def keep_options(keep):
    """Options of ``restic forget``. :raises Problem: when nothing would be kept"""
    options = [f"--keep-{name}={count}" for name, count in keep.items() if count > 0]
    if not options:
        raise Problem("backup_keep_last, _daily, _weekly and _monthly are all 0: nothing would be kept; set one of them to 1 or more")
    return options


def room(needed, free, what):
    """Refuse to begin what would not end. :raises Problem: when less is free than needed"""
    if free < needed:
        raise Problem(f"{what}: {megabytes(needed)} are needed and {megabytes(free)} are free; make room and try again", "no_room")


def megabytes(count):
    return f"{count / 1e6:.1f} MB"


def compare(manifest, found, now, exact=True):
    """What differs between a manifest and what was read from restored data.

    :param now: milliseconds since 1970; a conversation whose time was over by then cannot be read any more, and counts as expired
    :param exact: whether the number of keys must be equal too; not on a running primary, which drops what has expired
    :returns: dict with ``equal``, ``keys``, ``conversations`` (that are equal), ``expired`` and ``differs`` (sentences)
    """
    differs, equal, expired, named = [], 0, 0, 0
    if exact and manifest["keys"] != found["keys"]:
        differs.append(f"{found['keys']} keys instead of {manifest['keys']}")
    before, after = manifest["conversations"], found["conversations"]
    for key in sorted({*before, *after}):
        was, now_is = before.get(key), after.get(key)
        if was and was["expires_at"] is not None and was["expires_at"] <= now:
            expired += 1
            continue
        why = _difference(was, now_is)
        if not why:
            equal += 1
        else:
            named += 1
            if named <= MOST_NAMED:
                differs.append(f"{key}: {why}")
    if named > MOST_NAMED:
        differs.append(f"and {named - MOST_NAMED} further conversations")
    return {"equal": not differs, "keys": found["keys"], "conversations": equal, "expired": expired, "differs": differs}


def _difference(was, now_is):
    if was is None:
        return "is not in the manifest"
    if now_is is None:
        return "is missing"
    for name, word in (("type", "type"), ("length", "length"), ("digest", "content")):
        if was[name] != now_is[name]:
            return f"{word} differs" + (f" ({now_is[name]} instead of {was[name]})" if name != "digest" else "")
    return ""


def check_manifest(manifest):
    """Refuse what is no manifest of this program. :raises Problem: with what is wrong"""
    kinds = {"format": int, "keys": int, "sha256": str, "bytes": int, "databases": int, "conversations": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(manifest, dict) or not isinstance(manifest.get(name), kind)]
    if wrong:
        raise Problem(f"its manifest has no sound {', '.join(wrong)}", "damaged")
    if manifest["format"] != 1:
        raise Problem(f"its manifest has format {manifest['format']}, and this program reads 1; use the collection that made it", "damaged")
    return manifest


def redis_conf(text, follow):
    """The file that Redis owns, for a server that follows ``(address, port)``, or for a primary (None). All else stays."""
    lines = [line for line in text.splitlines() if line.split()[:1] not in (["replicaof"], ["slaveof"])]
    if follow:
        lines.append(f"replicaof {follow[0]} {follow[1]}")
    return "\n".join(lines) + "\n"


def holds_data(files):
    """Whether files of a Redis that does not run may hold keys.

    :param files: by name, bytes of an append-only file, or the number of keys in a snapshot (None: it cannot be read, so it may have some)
    """
    return any(count != 0 for name, count in files.items() if not name.endswith(".manifest"))


def keys_read(text):
    """Number of keys that redis-check-rdb has read; None when it does not say."""
    found = re.search(r"(\d+) keys read", text)
    return int(found[1]) if found else None


def record(before, action, result, began, ended):
    """The record of a run: what it did, and when the same thing went well last.

    :param before: the record of the run before, or {}
    :param result: ``parts`` (dicts), ``problems`` (sentences) and what else is worth telling; ``skipped`` says why nothing was due
    """
    ok = not result["problems"]
    good = ok and not result.get("skipped")
    return {
        "action": action,
        **result,
        "ok": ok,
        "began": began,
        "ended": ended,
        "seconds": round(ended - began, 1),
        "good_at": ended if good else before.get("good_at"),
        # What went well last is remembered by its snapshot too.
        "good": (result.get("parts") or []) if good else before.get("good", []),
        "failures": 0 if ok else before.get("failures", 0) + 1,
    }


def metrics(records, now):
    """Numbers for monitoring, without a name of any person: by action, when it ran and went well, how long it took, failures in a row."""
    return {
        "written_at": now,
        **{
            name: {
                "ok": int(one["ok"]),
                "skipped": int(bool(one.get("skipped"))),
                "ended": one["ended"],
                "good_at": one["good_at"],
                "seconds": one["seconds"],
                "failures": one["failures"],
                "bytes": sum(part.get("bytes") or 0 for part in one.get("good", [])),
            }
            for name, one in records.items()
        },
    }
