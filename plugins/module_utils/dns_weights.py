# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Weights of datacenters behind one name: what is allowed, which of several answers is in force, and the records that say it. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import json
import math
import re

PROVIDERS = ("powerdns", "nsupdate", "route53")
FAMILIES = ("A", "AAAA")
#: Seconds; a resolver that asked just before a change answers with the old addresses for so long.
LONGEST_TTL = 300
#: Beside the name, a TXT record says which weights are in force: a LUA record cannot be read over DNS, and plain addresses do not tell.
LABEL = "_weights"
_DATACENTER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_LABELS = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\Z")


class WeightsError(ValueError):
    """What is asked for is not allowed, or what was found cannot be built upon; one sentence says what, and what to do."""


@dataclasses.dataclass(frozen=True)
class Statement:
    """What the TXT record beside the name says.

    weights: datacenter -> 0..100
    serial: seconds since 1970 when it was decided; the highest one is in force
    ramp_from: the weights before a ramp that has not ended; None where none is under way
    content: digest of the other records
    """

    weights: dict
    serial: int
    ramp_from: dict | None = None
    content: str = ""


@dataclasses.dataclass(frozen=True)
class Sight:
    """What one server said. ``failure`` is a clause about one that gave no usable answer; ``silent`` when it gave none at all."""

    host: str
    statement: Statement | None = None
    answers: dict = dataclasses.field(default_factory=dict)
    text: str = ""
    failure: str = ""
    silent: bool = False


def name_of(text):
    """A domain name in lower case without its last dot."""
    return str(text).rstrip(".").lower()


def settings_problem(name, zone, ttl):
    """A sentence about settings that cannot work; empty when they can."""
    for key, value in (("dns_name", name), ("dns_zone", zone)):
        if not _LABELS.match(name_of(value)):
            return f"{key}: found {value!r}; allowed a domain name of letters, digits and hyphens; correct it."
    if name_of(name) != name_of(zone) and not name_of(name).endswith(f".{name_of(zone)}"):
        return f"dns_name: found {name}, which is not in dns_zone {zone}; allowed the zone itself or a name in it; correct one of the two."
    if not 1 <= ttl <= LONGEST_TTL:
        return f"dns_ttl: found {ttl}; allowed 1 to {LONGEST_TTL} seconds, because a failover takes at least as long; lower it."
    return ""


def weights_problem(weights, addresses, provider):
    """A sentence about weights that must not be set; empty when they may.

    :param addresses: datacenter -> its addresses as clients see them
    """
    for datacenter, weight in weights.items():
        if datacenter not in addresses:
            known = ", ".join(addresses) or "none"
            return f"dns_weights: found the datacenter {datacenter!r}, which is not in the inventory; allowed {known}; correct the name."
        if not _DATACENTER.match(datacenter):
            return f"topology_datacenter: found {datacenter!r}; allowed letters, digits, dots, hyphens and underscores; rename it."
        if isinstance(weight, bool) or not isinstance(weight, int) or not 0 <= weight <= 100:
            return f"dns_weights: found {weight!r} for {datacenter}; allowed whole numbers from 0 to 100; correct it."
        if provider == "nsupdate" and weight not in (0, 100):
            return (
                f"dns_weights: found {weight} for {datacenter}; dns_provider nsupdate allowed 0 and 100 only, because plain addresses have no weights; "
                f"set one of them, or use powerdns or route53."
            )
    if not any(weights.values()):
        return f"dns_weights: found no datacenter with a weight above 0 ({text_of(weights) or 'none set'}); allowed at least one; nobody would be served."
    served = {datacenter: by_family(addresses[datacenter]) for datacenter, weight in weights.items() if weight}
    for datacenter, families in served.items():
        if not any(families.values()):
            return f"dns_addresses: found no address of {datacenter}, whose weight is {weights[datacenter]}; allowed at least one; add it."
    for family in FAMILIES:
        without = [datacenter for datacenter, families in served.items() if not families[family]]
        if without and len(without) < len(served):
            return (
                f"dns_addresses: found no {family} address of {', '.join(without)}, but one of another datacenter; "
                f"allowed all or none, because clients of that family would not follow the weights; add it or take the other away."
            )
    return ""


def by_family(addresses):
    """Addresses sorted into A and AAAA, in canonical form."""
    found = {family: [] for family in FAMILIES}
    for text in addresses:
        try:
            address = ipaddress.ip_address(str(text))
        except ValueError:
            raise WeightsError(f"dns_addresses: found {text!r}; allowed IPv4 and IPv6 addresses, because a name cannot be weighted; correct it.") from None
        found[FAMILIES[address.version == 6]].append(str(address))
    return {family: sorted(set(texts)) for family, texts in found.items()}


def text_of(weights):
    return " ".join(f"{datacenter}={weight}" for datacenter, weight in sorted(weights.items()))


def encode(statement):
    """A statement as the text of the TXT record, which people read with dig."""
    text = f"serial={statement.serial} weights {text_of(statement.weights)}"
    if statement.ramp_from is not None:
        text += f" ramp-from {text_of(statement.ramp_from)}"
    return f"{text} content {statement.content}"


def decode(text):
    """The statement of a text; None when it is no such text."""
    found = re.fullmatch(r"serial=(\d{1,10}) weights ((?:\S+=\d+ )+)(?:ramp-from ((?:\S+=\d+ )+))?content ([0-9a-f]+)", text)
    if not found:
        return None
    serial, weights, ramp_from, content = found.groups()
    return Statement(_pairs(weights), int(serial), None if ramp_from is None else _pairs(ramp_from), content)


def _pairs(text):
    return {name: int(weight) for name, _equals, weight in (pair.rpartition("=") for pair in text.split())}


def in_force(sights):
    """Of what several servers say, what counts: the highest serial; None where nobody says anything.

    :raises WeightsError: when two say different things with the same serial
    """
    told = [sight for sight in sights if sight.statement]
    if not told:
        return None
    newest = max(told, key=lambda sight: sight.statement.serial)
    for sight in told:
        if sight.statement.serial == newest.statement.serial and sight.statement != newest.statement:
            raise WeightsError(
                f"{newest.host} and {sight.host} say different things with the same serial {newest.statement.serial} "
                f"({text_of(newest.statement.weights)}; {text_of(sight.statement.weights)}); set the weights explicitly to say which ones hold."
            )
    return newest.statement


def settled(stated, datacenters):
    """Weights in force, for the datacenters that there are now: new ones have 0, ones that have left are dropped if nobody is sent there.

    :raises WeightsError: when clients are sent to one that has left
    """
    gone = [name for name, weight in stated.items() if weight and name not in datacenters]
    if gone:
        raise WeightsError(
            f"The weights in force ({text_of(stated)}) send clients to {', '.join(gone)}, which is not in the inventory; set other weights before it leaves."
        )
    return {name: stated.get(name, 0) for name in datacenters}


def shares(weights, addresses):
    """For each family (address, weight) of what is served; a datacenter's weight is dealt evenly to its addresses."""
    found = {}
    served = {name: by_family(addresses[name]) for name, weight in weights.items() if weight}
    for family in FAMILIES:
        whole = math.lcm(*(len(families[family]) or 1 for families in served.values()))
        rows = [(one, weights[name] * whole // len(families[family])) for name, families in served.items() for one in families[family]]
        if rows:
            found[family] = sorted(rows)
    return found


def lua(family, rows):
    """The content of PowerDNS' LUA record that answers with one address, each as often as its weight says."""
    choices = ",".join(f"{{{weight},'{address}'}}" for address, weight in rows)
    return family, f"pickwrandom({{{choices}}})"


def content(*parts):
    """Digest of records."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def answers_problem(answers, rows):
    """A clause about addresses that a server must not give, or does not give; empty when all is well.

    :param answers: family -> addresses of one answer
    :param rows: what :func:`shares` returned
    """
    for family in FAMILIES:
        allowed, given = [address for address, _weight in rows.get(family, [])], answers.get(family, [])
        strangers = [address for address in given if address not in allowed]
        if strangers:
            return f"answers {family} with {', '.join(strangers)} instead of {', '.join(allowed) or 'nothing'}"
        if allowed and not given:
            return f"gives no {family} address"
    return ""


def share(weights, datacenter):
    """Percentage of new clients that a datacenter gets."""
    whole = sum(weights.values())
    return round(100 * weights.get(datacenter, 0) / whole) if whole else 0


def spread(before, datacenter, percent):
    """Weights with which a datacenter gets ``percent``, and the others the rest in proportion to what they had."""
    others = {name: weight for name, weight in before.items() if name != datacenter}
    whole, rest = sum(others.values()), 100 - percent
    found = {name: rest * weight // whole if whole else 0 for name, weight in others.items()}
    # What rounding left over goes to those that lost most by it.
    by_loss = sorted((name for name in others if others[name]), key=lambda name: -(rest * others[name] % whole))
    for name in by_loss[: rest - sum(found.values())]:
        found[name] += 1
    return {name: percent if name == datacenter else found[name] for name in dict.fromkeys([*before, datacenter])}
