# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: read, and refused with a sentence when it cannot be worked with."""

from __future__ import annotations

import json

from .plan import Problem, keep_options

#: Root's alone: passwords and credentials stand in it.
PATH = "/etc/openclaw-backup/config.json"

_KINDS = {
    "host": str,
    "site": str,
    "state_directory": str,
    "repository": dict,
    "offsite": (dict, type(None)),
    "lock_wait": (int, float),
    "answer_within": (int, float),
    "keep": dict,
    "check_parts": int,
    "max_age": (int, float),
    "restore_max_age": (int, float),
    "redis": (dict, type(None)),
    "gateway": (dict, type(None)),
}
_REDIS = {
    "address", "port", "nodes", "username", "password", "tls_ca", "tls_cert", "tls_key", "user", "unit", "data_directory", "etc_directory", "settings",
    "load_within",
}  # fmt: skip


def load(path=PATH):
    """The configuration in a file as a dict. :raises Problem: when it is not readable or not complete"""
    try:
        with open(path, encoding="utf-8") as file:
            return check(json.load(file))
    except OSError as error:
        raise Problem(f"{path} cannot be read: {error.strerror}; run this as root, after site.yml", "config") from None
    except json.JSONDecodeError:
        raise Problem(f"{path} is no JSON; run site.yml", "config") from None


def check(config):
    """Return ``config``, or raise :class:`Problem` naming what is wrong with it, without its value: it may be a secret."""
    if not isinstance(config, dict) or set(config) != set(_KINDS):
        odd = sorted(set(_KINDS) ^ set(config if isinstance(config, dict) else ()))
        raise Problem(f"settings that are missing or unknown: {', '.join(odd)}", "config")
    for name, kind in _KINDS.items():
        if not isinstance(config[name], kind) or isinstance(config[name], bool):
            raise Problem(f"{name} is of the wrong type", "config")
    for name in ("repository", "offsite"):
        one = config[name]
        if one is not None and set(one) != {"location", "password_file", "environment"}:
            raise Problem(f"{name} must have location, password_file and environment", "config")
        if one is not None and not one["location"]:
            raise Problem(f"backup_{'' if name == 'repository' else 'offsite_'}repository is empty", "config")
    if config["check_parts"] < 1:
        raise Problem(f"backup_check_parts is {config['check_parts']}; it must be 1 or more", "config")
    if set(config["keep"]) != {"last", "daily", "weekly", "monthly"}:
        raise Problem("keep must have last, daily, weekly and monthly", "config")
    keep_options(config["keep"])
    if config["redis"] is not None and set(config["redis"]) != _REDIS:
        raise Problem(f"redis: missing or unknown: {', '.join(sorted(_REDIS ^ set(config['redis'])))}", "config")
    if config["gateway"] is not None and set(config["gateway"]) != {"paths", "exclude", "user"}:
        raise Problem("gateway must have paths, exclude and user", "config")
    return config
