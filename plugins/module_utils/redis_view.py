# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the Redis servers and the Sentinels say, turned into one view and a list of disagreements.

Pure. The primary is what a majority of Sentinels name *and* what says so of itself, never what the inventory lists first.
"""

from __future__ import annotations


def agree(nodes, sentinels, unanswered_ok=False, quorum=None, elsewhere=None):
    """Decide who the primary is.

    :param nodes: list of dicts, one a Redis server: ``host``, ``address``, ``port`` and either ``error`` (text: it did not
        answer) or ``role`` (``master``/``slave``), ``primary`` (``address:port`` that a replica follows), ``link`` (bool),
        ``offset`` (bytes), ``connected`` (number of attached replicas)
    :param sentinels: list of dicts, one a Sentinel: ``host``, ``address``, ``port`` and either ``error`` or ``primary``
        (``address:port`` it names, None when it watches nothing), ``replicas`` (number it knows), ``quorum_ok`` (bool),
        ``tilt`` (bool), ``failover`` (bool); where known also ``known`` (replicas by ``address:port``, each with ``flags``),
        ``others`` (number of other Sentinels it knows), ``quorum`` (number) and ``flags`` (of the primary)
    :param quorum: number of Sentinels that the inventory wants to agree on a failure, or None
    :param unanswered_ok: whether silence of a node is no disagreement (a run that is about to start it)
    :param elsewhere: for a standby: ``address:port`` of the servers of the other datacenters, one of which each of its own follows
    :returns: dict with ``state`` (``absent``: nothing answers; ``agreed``; ``standby``: all follow another datacenter; ``disagreed``),
        ``primary`` (``address:port`` or None), ``problems`` (list of sentences)
    """
    problems = []
    alive = [node for node in nodes if not node.get("error")]
    voters = [sentinel for sentinel in sentinels if not sentinel.get("error")]
    named = [sentinel["primary"] for sentinel in voters if sentinel.get("primary")]
    masters = [node for node in alive if node["role"] == "master"]

    if not unanswered_ok:
        problems += [f"Redis on {node['host']} ({where(node)}) does not answer: {node['error']}." for node in nodes if node.get("error")]
        problems += [f"Sentinel on {one['host']} ({where(one)}) does not answer: {one['error']}." for one in sentinels if one.get("error")]
    if not alive and not named:
        return {"state": "absent", "primary": None, "problems": problems}
    if elsewhere:
        conflict = _no_standby(alive, voters, elsewhere)
        problems += [f"Redis on {one['host']} ({where(one)}) has lost its link to {one['primary']}." for one in alive if not one["link"] and not conflict]
        return {"state": "disagreed" if conflict else "standby", "primary": None, "problems": problems + conflict}

    primary, conflict = None, []
    if len(masters) > 1:
        claims = " and ".join(f"{node['host']} ({where(node)}, {node['connected']} replicas)" for node in masters)
        conflict.append(
            f"More than one Redis says it is the primary: {claims}. Decide which one holds the truth, "
            f"make the other its replica (REPLICAOF), then run again."
        )
    if named:
        votes = {address: named.count(address) for address in named}
        favourite = max(votes, key=lambda address: (votes[address], address))
        if votes[favourite] * 2 <= len(sentinels):
            tally = ", ".join(f"{address} ({count})" for address, count in sorted(votes.items()))
            conflict.append(f"No primary is named by a majority of the {len(sentinels)} Sentinels; their votes: {tally}.")
        elif alive and not any(where(node) == favourite for node in masters):
            conflict.append(
                f"The Sentinels name {favourite} as primary, but no Redis there says so of itself; wait for the failover to end, "
                f"or see SENTINEL MASTER on one of them."
            )
        else:
            primary = favourite
    elif len(masters) == 1:
        # No Sentinel knows anything (the first run, or all of them lost their files): a single primary speaks for itself.
        primary = where(masters[0])
    elif not masters:
        followed = sorted({node["primary"] for node in alive})
        conflict.append(f"No Redis says it is the primary; the replicas follow {', '.join(followed)}.")

    if conflict:
        return {"state": "disagreed", "primary": None, "problems": problems + conflict}
    for node in alive:
        if node["role"] == "master":
            continue
        if node["primary"] != primary:
            problems.append(f"Redis on {node['host']} ({where(node)}) follows {node['primary']}, not the primary {primary}.")
        elif not node["link"]:
            problems.append(f"Redis on {node['host']} ({where(node)}) has lost its link to the primary {primary}.")
    for sentinel in voters:
        label = f"Sentinel on {sentinel['host']} ({where(sentinel)})"
        if sentinel.get("primary") != primary:
            problems.append(f"{label} names {sentinel.get('primary') or 'nobody'} as primary, not {primary}.")
        elif not sentinel["quorum_ok"]:
            problems.append(f"{label} does not see enough Sentinels for a failover.")
        elif sentinel["replicas"] < len(alive) - 1:
            # It learns of replicas every 10 s, and cannot promote one that it does not know.
            problems.append(f"{label} knows {sentinel['replicas']} replicas of the {len(alive) - 1} that there are.")
        if sentinel.get("tilt"):
            problems.append(f"{label} is in tilt mode: its clock jumped or its host stalled.")
        if sentinel.get("failover"):
            problems.append(f"{label} has a failover in progress.")
        if sentinel.get("primary") == primary:
            problems += _differences_of(sentinel, label, nodes, sentinels, quorum)
    return {"state": "agreed", "primary": primary, "problems": problems}


def _no_standby(alive, voters, elsewhere):
    """What is not as it must be in a standby datacenter, as sentences: every server follows another datacenter, and no Sentinel watches anybody."""
    found = []
    for node in alive:
        if node["role"] == "master":
            found.append(f"Redis on {node['host']} ({where(node)}) says it is a primary, in a standby datacenter.")
        elif node["primary"] not in elsewhere:
            found.append(f"Redis on {node['host']} ({where(node)}) follows {node['primary']}, which is in no other datacenter.")
    for one in voters:
        if one.get("primary"):
            found.append(f"Sentinel on {one['host']} ({where(one)}) watches {one['primary']}, although this datacenter is a standby.")
    return found


def _differences_of(sentinel, label, nodes, sentinels, quorum):
    """What a Sentinel that names the right primary still sees differently from the inventory and the servers, as sentences."""
    problems = []
    down = {"o_down", "s_down"} & set(sentinel.get("flags", "").split(","))
    if down:
        problems.append(f"{label} regards the primary as down ({', '.join(sorted(down))}), although it may answer others.")
    if quorum is not None and sentinel.get("quorum") not in (None, quorum):
        problems.append(f"{label} has quorum {sentinel['quorum']}, not {quorum}.")
    if sentinel.get("others", len(sentinels) - 1) > len(sentinels) - 1:
        # A majority is counted over all it ever met, so those that are gone make failovers harder or impossible.
        problems.append(
            f"{label} knows {sentinel['others']} other Sentinels, not {len(sentinels) - 1}; if some are gone for good, "
            f"SENTINEL RESET on one Sentinel after the other makes them forget."
        )
    answering = {where(node): node["host"] for node in nodes if not node.get("error")}
    for address, replica in sorted(sentinel.get("known", {}).items()):
        if address not in {where(node) for node in nodes}:
            problems.append(
                f"{label} knows the replica {address}, which is not in the inventory; if it is gone for good, "
                f"SENTINEL RESET on one Sentinel after the other makes them forget."
            )
        elif address in answering and {"s_down", "disconnected"} & set(replica["flags"].split(",")):
            problems.append(f"{label} does not reach the replica on {answering[address]} ({address}), which answers here.")
    return problems


def with_lag(nodes, primary):
    """The nodes, each with ``behind``: bytes that its own offset is behind the primary's (None without an answer or a primary).

    The offsets are read one after the other, so under load a healthy replica may be some bytes behind, or ahead (then 0).
    """
    offset = next((node["offset"] for node in nodes if where(node) == primary and not node.get("error")), None)
    return [
        {**node, "behind": None if offset is None or node.get("error") else max(0, offset - node["offset"])} for node in nodes
    ]


def where(node):
    """``address:port`` of a node."""
    return f"{node['address']}:{node['port']}"


def parse_memory(text):
    """Bytes of a Redis memory value such as ``256mb``; redis.conf's own units (``1k`` = 1000, ``1kb`` = 1024).

    :raises ValueError: when it is no such value
    """
    units = {"": 1, "b": 1, "k": 1000, "kb": 1024, "m": 1000**2, "mb": 1024**2, "g": 1000**3, "gb": 1024**3}
    value = str(text).strip().lower()
    digits = value.rstrip("bkmg")
    if not digits.isdigit() or value[len(digits) :] not in units:
        raise ValueError(f"{text!r} is not a memory size such as 256mb or 1gb")
    return int(digits) * units[value[len(digits) :]]


def differences(wanted, found):
    """Settings that differ, as ``{name: (found, wanted)}``. Values are compared as Redis prints them; sizes as bytes.

    :param wanted: settings as they stand in redis.conf, name to text
    :param found: answer of CONFIG GET, name to text
    """
    return {name: (found.get(name), value) for name, value in wanted.items() if _plain(value) != _plain(found.get(name))}


def _plain(value):
    if value is None:
        return None
    text = str(value).strip().strip('"')
    try:
        return str(parse_memory(text))
    except ValueError:
        return " ".join(text.split())
