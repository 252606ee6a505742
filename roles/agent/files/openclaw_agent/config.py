# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: read, and refused with a sentence when it is not what the service can work with."""

from __future__ import annotations

import ipaddress
import json

#: Where it is. The running service reads the copy that its unit made at the start, so what runs can be compared with what is wanted.
PATH = "/etc/openclaw-agent/config.json"

_REPLICA = {"id": str, "zone": str, "port": int, "unit": str, "verdict_port": int, "check_port": int}
_NUMBERS = {
    "stalled_after": 0.1,
    "dead_after": 0.2,
    "disk_free_percent": 0,
    "disk_inodes_percent": 0,
    "restarts": 1,
    "certificate_days": 0,
    "clock_max_offset": 0.001,
    "gateway_interval": 0.05,
    "gateway_timeout": 0.05,
    "unit_interval": 0.1,
    "disk_interval": 0.1,
    "health_interval": 0.1,
    "partner_interval": 0.1,
    "partner_timeout": 0.1,
    "certificate_interval": 0.1,
    "clock_interval": 0.1,
}
_LISTS = ("disk_paths", "partner", "certificates")
_TEXTS = ("host", "address", "partner_ca", "drain_directory", "certificates_file")


class ConfigError(ValueError):
    """The configuration cannot be worked with; the text is one sentence for people."""


def load(path=PATH):
    """The configuration in a file as a dict.

    :raises ConfigError: when it is not readable or not complete
    """
    try:
        with open(path, encoding="utf-8") as file:
            return check(json.load(file))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def check(config):
    """Return ``config``, or raise :class:`ConfigError` naming what is wrong with it."""
    if not isinstance(config, dict):
        raise ConfigError("it must be one JSON object.")
    known = {"replicas", "clock", "inputs", *_NUMBERS, *_LISTS, *_TEXTS}
    if odd := known ^ set(config):
        raise ConfigError(f"settings that are missing or unknown: {', '.join(sorted(odd))}.")
    for name, least in _NUMBERS.items():
        if not _is_number(config[name]) or config[name] < least:
            raise ConfigError(f"{name} is {config[name]!r}; it must be a number of at least {least}.")
    if config["dead_after"] <= config["stalled_after"]:
        raise ConfigError(f"dead_after is {config['dead_after']}; it must be more than stalled_after, {config['stalled_after']}.")
    for name in _LISTS:
        if not isinstance(config[name], list) or not all(isinstance(item, str) and item for item in config[name]):
            raise ConfigError(f"{name} must be a list of texts.")
    for name in _TEXTS:
        if not isinstance(config[name], str):
            raise ConfigError(f"{name} must be a text.")
    if not isinstance(config["clock"], bool):
        raise ConfigError(f"clock is {config['clock']!r}; it must be true or false.")
    try:
        ipaddress.ip_address(config["address"])
    except ValueError:
        raise ConfigError(f"address is {config['address']!r}; it must be an IP address of this host.") from None
    for where in config["partner"]:
        endpoint(where)
    _check_replicas(config["replicas"])
    return config


def endpoint(where):
    """(host, port) of ``host:port``; an IPv6 address stands in brackets."""
    host, colon, port = where.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"partner has {where!r}; it must be host:port.")
    return host, int(port)


def _check_replicas(replicas):
    if not isinstance(replicas, list) or not all(isinstance(one, dict) for one in replicas):
        raise ConfigError("replicas must be a list of objects.")
    taken = {}
    for one in replicas:
        if set(one) != set(_REPLICA) or any(not isinstance(one[key], kind) or isinstance(one[key], bool) for key, kind in _REPLICA.items()):
            raise ConfigError(f"a replica must have {', '.join(_REPLICA)}, and has {one!r}.")
        if "/" in one["id"] or one["id"].startswith(".") or not one["id"]:
            raise ConfigError(f"the replica's id {one['id']!r} cannot be the name of a file.")
        for key in ("id", "port", "verdict_port", "check_port"):
            if key != "id" and not 0 < one[key] < 65536:
                raise ConfigError(f"{key} of {one['id']} is {one[key]}; it must be a port.")
            if one[key] in taken:
                raise ConfigError(f"{one[key]} is {key} of {one['id']}, and {taken[one[key]]}.")
            taken[one[key]] = f"{key} of {one['id']}"


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
