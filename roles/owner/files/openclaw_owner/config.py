# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: read, and refused with one sentence that names the key, what was found and what is allowed.

::

    {"host": "node1",                       # name of this host in leases, events and logs
     "status_port": 18602,                  # /health, /metrics and /give, on 127.0.0.1
     "redis": {...},                        # as of openclaw_ingress
     "state_file": "/run/openclaw-owner/state.json",  # where a daemon that died finds its leases; must not outlive the boot
     "systemctl": "systemctl",              # the program that names a unit's main process
     "singletons": [                        # those of the whole cluster, the same on all hosts
       {"id": "telegram/poll", "linger_seconds": 35, "section": "channels", "content": {"telegram": {"accounts": {"poll": {"enabled": true}}}}},
       {"id": "cron", "linger_seconds": 0, "section": "cron", "content": {"enabled": true}}],
     "replicas": [                          # those of this host
       {"id": "node1-1", "unit": "openclaw-gateway@1.service", "verdict_url": "http://127.0.0.1:18700/health",
        "sections": {"channels": "/run/openclaw-owner/1/channels.json", "cron": "/run/openclaw-owner/1/cron.json"},
        "proof_url": "http://192.0.2.11:18789/api/v1/owned"}],
     "proof_token_file": "/etc/openclaw-owner/secrets/gateway",  # optional: what proof_url asks for, as bearer token
     ...}                                   # NUMBERS, each of them optional; all but give_seconds and look_seconds the same on all hosts

``content`` is what stands in the file of its section while a replica has the singleton; ``linger_seconds`` is how long after the end of a lease that was
not given back nobody may take it. ``proof_url`` (optional, or null) answers ``{"pid": 123, "on": ["telegram/poll"], "busy": []}``: what is on in the gateway's
process, and what it has not stopped yet of ``?leaving=telegram/poll``, which it is asked to stop between two messages; ``?keeping=telegram/poll`` takes
that back.
"""

from __future__ import annotations

import os

# What is the same in both: one sentence for one mistake, and the way to Redis.
from openclaw_ingress.config import ConfigError, check_keys, check_list, check_redis, check_text, check_url, read

#: Where it is. The running service reads the copy that its unit made at the start.
PATH = "/etc/openclaw-owner/config.json"

#: Name -> (default, least, most). Times are seconds; what has a whole default is a whole number.
NUMBERS = {
    # Replicas of Redis (all there are) that are waited for before a lease counts, and how long; and how many of them are enough when the others do not
    # confirm in time.
    "wait_replicas": (2, 0, 100),
    "enough_replicas": (1, 0, 100),
    "wait_timeout": (0.5, 0.01, 30),
    "redis_timeout": (1.0, 0.05, 30),
    "lease_seconds": (20.0, 0.5, 600),
    "renew_seconds": (2.0, 0.05, 60),
    # What is left of a lease that cannot be renewed when its singleton is given up; how long it may then take to be proven off before the gateway is
    # killed; and what is left of the lease when it is killed in any case, against clocks of two Redis servers that differ.
    "stop_seconds": (8.0, 0.1, 300),
    # How long a gateway may take to stop by itself what is turned off without need, between two messages.
    "finish_seconds": (25.0, 0, 60),
    "proof_seconds": (4.0, 0.05, 60),
    "fence_seconds": (2.0, 0.01, 60),
    # How long after its file was changed a gateway that says something else is told once more; and how long it may say that something is off that
    # it is to have, before another one is to get it.
    "nudge_seconds": (10.0, 0.05, 600),
    "refuse_seconds": (120.0, 0.05, 3600),
    # How long its agent must have called a gateway dead whose process lives, before it is to give up what it has.
    "down_seconds": (90.0, 0.05, 600),
    # A gateway that its agent says is dead has so long to prove it; afterwards it is killed.
    "dead_seconds": (3.0, 0.05, 60),
    # A gateway that systemd is stopping, or whose lease is renewed, may take this long before it is killed: it finishes what it has.
    "stopping_seconds": (20.0, 0.05, 600),
    # How long after its file was written a gateway that lives has done what it says.
    "settle_seconds": (3.0, 0.05, 60),
    # An agent that does not answer for so long says nothing of its replica: it may be starting anew.
    "verdict_grace": (3.0, 0.05, 60),
    "interval": (0.25, 0.01, 5),
    "look_seconds": (1.0, 0.02, 60),
    # How much longer a replica waits before it takes one more, for each that it has; and again at most for the jitter.
    "step_seconds": (0.3, 0, 10),
    "retry_seconds": (0.5, 0.02, 60),
    "give_seconds": (60.0, 0.1, 3600),
}
_TEXTS = {"key_prefix": "oc:", "state_file": "/run/openclaw-owner/state.json", "systemctl": "systemctl"}
_WHOLE = {name for name, (default, _least, _most) in NUMBERS.items() if isinstance(default, int)}
_SINGLETON = {"id", "linger_seconds", "section", "content"}
_REPLICA = {"id", "unit", "verdict_url", "sections"}


def load(path=PATH):
    """The configuration in a file as a dict, complete with defaults.

    :raises ConfigError: when it is not readable or not right
    """
    return read(path, check)


def check(config):
    """Return ``config`` with its defaults, or raise :class:`ConfigError` naming what is wrong with it."""
    check_keys("the configuration", config, {"host", "status_port", "redis", "singletons", "replicas"}, {"proof_token_file", *_TEXTS, *NUMBERS})
    config = _TEXTS | {name: one[0] for name, one in NUMBERS.items()} | config
    for name, (_default, least, most) in NUMBERS.items():
        _number(name, config[name], least, most, name in _WHOLE)
    for name in ("host", *_TEXTS):
        check_text(name, config[name])
    _number("status_port", config["status_port"], 1, 65535, whole=True)
    _file("state_file", config["state_file"])
    if "proof_token_file" in config:
        _file("proof_token_file", config["proof_token_file"])
    if config["proof_seconds"] + config["fence_seconds"] > config["stop_seconds"]:
        both = config["proof_seconds"] + config["fence_seconds"]
        raise ConfigError(f"stop_seconds is {config['stop_seconds']}; it must be at least proof_seconds and fence_seconds, {both:g}.")
    if config["lease_seconds"] < config["stop_seconds"] + 2 * config["renew_seconds"]:
        least = config["stop_seconds"] + 2 * config["renew_seconds"]
        raise ConfigError(f"lease_seconds is {config['lease_seconds']}; it must be at least stop_seconds and twice renew_seconds, {least:g}.")
    check_redis(config["redis"])
    _check_singletons(config["singletons"])
    _check_replicas(config["replicas"], {one["section"] for one in config["singletons"]})
    return config


def _number(where, value, least, most, whole=False):
    if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{where} is {value!r}; it must be a {'whole number' if whole else 'number'} from {least} to {most}.")


def _file(where, value):
    check_text(where, value)
    if not os.path.isabs(value):
        raise ConfigError(f"{where} is {value!r}; it must be the absolute path of a file.")


def _own(where, value, taken):
    if value in taken:
        raise ConfigError(f"{where} is {value!r}, and so is {taken[value]}; it must be its own.")
    taken[value] = where


def _check_singletons(singletons):
    check_list("singletons", singletons, empty=True)
    ids, leaves = {}, {}
    for number, one in enumerate(singletons):
        where = f"singletons[{number}]"
        check_keys(where, one, _SINGLETON)
        check_text(f"{where}.id", one["id"])
        _own(f"{where}.id", one["id"], ids)
        check_text(f"{where}.section", one["section"])
        _number(f"{where}.linger_seconds", one["linger_seconds"], 0, 86400)
        if not isinstance(one["content"], dict) or not one["content"]:
            raise ConfigError(f"{where}.content is {one['content']!r}; it must be a JSON object that is not empty.")
        # One within another, or twice the same: then the file would not tell which of them is on.
        for path in _leaves(one["content"], (one["section"],)):
            for other, its in leaves.items():
                if path[: len(other)] == other or other[: len(path)] == path:
                    raise ConfigError(f"{where}.content has {'.'.join(path)}, and so has {its}.content; it must be its own.")
        leaves |= dict.fromkeys(_leaves(one["content"], (one["section"],)), where)


def _leaves(content, path):
    """Paths of all values that are no objects with something in them."""
    if not isinstance(content, dict) or not content:
        return [path]
    return [leaf for key, value in content.items() for leaf in _leaves(value, (*path, key))]


def _check_replicas(replicas, sections):
    check_list("replicas", replicas, empty=True)
    ids, paths = {}, {}
    for number, one in enumerate(replicas):
        where = f"replicas[{number}]"
        check_keys(where, one, _REPLICA, {"proof_url"})
        for key in ("id", "unit"):
            check_text(f"{where}.{key}", one[key])
        _own(f"{where}.id", one["id"], ids)
        check_url(f"{where}.verdict_url", one["verdict_url"])
        if one.get("proof_url") is not None:
            check_url(f"{where}.proof_url", one["proof_url"])
        if not isinstance(one["sections"], dict) or sections - set(one["sections"]):
            raise ConfigError(f"{where}.sections is {one['sections']!r}; it must have a file for each of {', '.join(sorted(sections))}.")
        for section, path in one["sections"].items():
            _file(f"{where}.sections.{section}", path)
            _own(f"{where}.sections.{section}", path, paths)
