# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The configuration file: read, and refused with one sentence that names the key, what was found and what is allowed.

::

    {"host": "node1",                       # name of this ingress in leases, events and logs
     "address": "192.0.2.11", "port": 18600,  # the door, for the balancers
     "status_port": 18601,                  # /health and /metrics, on 127.0.0.1
     "redis": {"address": "192.0.2.11:6379"},
       # or {"sentinels": ["192.0.2.11:26379", ...], "monitor": "openclaw"}; and, each of them optional:
       # "user", "password_file", "sentinel_user", "sentinel_password_file", "tls": {"ca": FILE, "cert": FILE, "key": FILE}
     "accounts": [
       {"channel": "telegram", "account": "default", "type": "telegram", "path": "/webhook/telegram", "secrets": ["telegram-default"]},
       {"channel": "slack", "account": "default", "type": "slack", "path": "/webhook/slack", "secrets": ["slack-new", "slack-old"]},
       {"channel": "crm", "account": "default", "type": "shared_secret", "path": "/webhook/crm", "secrets": ["/etc/crm.secret"],
        "header": "X-Crm-Token", "event": "header:X-Crm-Delivery", "conversation": "body:contact.id",
        "group": "body:batch", "message": "body:message.id"}],
     "replicas": [
       {"id": "node1-1", "verdict_url": "http://192.0.2.11:18700/health", "webhooks": {"telegram/default": "http://192.0.2.11:8787/telegram-webhook"}}],
     ...}                                   # NUMBERS, each of them optional

A secret is the content of a file: a name stands in the directory of systemd's credentials, a path for itself. Any of them opens the door; the
first is the one that the gateways know. ``claim`` of an account (optional) is the template of the key under which the gateways' plugin notes
the event's message; see :data:`openclaw_ingress.channels.CLAIM` for its fields.
"""

from __future__ import annotations

import json
import os
import pathlib
import string
import urllib.parse

#: Where it is. The running service reads the copy that its unit made at the start.
PATH = "/etc/openclaw-ingress/config.json"

TYPES = ("telegram", "slack", "shared_secret")

#: Name -> (default, least, most). Times are seconds, sizes bytes; what has a whole default is a whole number.
NUMBERS = {
    # Replicas of Redis (all there are) that are waited for before an event is acknowledged, and how long; and how many of them are enough
    # when the others do not confirm in time: with all of them, one dead host would keep every event from being acknowledged.
    "wait_replicas": (1, 0, 100),
    "enough_replicas": (1, 0, 100),
    "wait_timeout": (0.5, 0.01, 30),
    "redis_timeout": (1.0, 0.05, 30),
    # What may wait in the journal, and which share of it is worth an alarm, and the end of one.
    "max_events": (20000, 1, 10_000_000),
    "max_bytes": (33_554_432, 1024, 2**40),
    "high_ratio": (0.8, 0.01, 1),
    "low_ratio": (0.6, 0, 1),
    "body_max_bytes": (1_048_576, 1024, 2**26),
    "body_timeout": (10.0, 0.1, 300),
    "retry_after": (5, 1, 3600),
    "requests": (100, 1, 10000),
    # How long an event's id is known. Telegram repeats for a day.
    "dedupe_seconds": (172_800, 1, 31_536_000),
    "max_age_seconds": (3600.0, 0.1, 31_536_000),
    "max_attempts": (30, 1, 100_000),
    # Events that one replica may have at a time: what more there is waits in the journal, where it survives.
    "replica_events": (8, 1, 10000),
    "quiet_seconds": (120.0, 0.1, 3600),
    "gone_seconds": (5.0, 0.05, 600),
    "lease_seconds": (10.0, 0.1, 600),
    "post_timeout": (10.0, 0.1, 300),
    # Pauses between rounds over the replicas: the first, and the longest.
    "pause_seconds": (1.0, 0.01, 600),
    "pause_max_seconds": (60.0, 0.01, 3600),
    # How often an event whose turn is awaited is looked at, and the replicas' verdicts.
    "poll_seconds": (0.25, 0.01, 60),
    "health_interval": (0.5, 0.05, 60),
    # An agent that does not answer for so long says nothing of its replica: it may be starting anew.
    "verdict_grace": (3.0, 0.05, 60),
    "workers": (64, 1, 10000),
    "dead_max_events": (1000, 1, 10_000_000),
    "dead_max_bytes": (8_388_608, 1024, 2**40),
    "dead_max_age_seconds": (604_800, 1, 31_536_000),
    "stop_seconds": (15.0, 0.1, 300),
}
_TEXTS = {"host": None, "address": None, "key_prefix": "oc:"}
_PORTS = ("port", "status_port")
_WHOLE = {name for name, (default, _least, _most) in NUMBERS.items() if isinstance(default, int)}
_REDIS = {"address", "sentinels", "monitor", "user", "password_file", "sentinel_user", "sentinel_password_file", "tls"}
_ACCOUNT = {"channel", "account", "type", "path", "secrets"}
_FIELDS = ("event", "conversation", "group", "message")
#: What a claim's template may name.
CLAIM_FIELDS = ("channel", "account", "conversation", "message", "thread", "sender")


class ConfigError(ValueError):
    """The configuration cannot be worked with; the text is one sentence for people."""


def load(path=PATH):
    """The configuration in a file as a dict, complete with defaults.

    :raises ConfigError: when it is not readable or not right
    """
    return read(path, check)


def read(path, judge):
    """What ``judge`` makes of the JSON document in a file.

    :raises ConfigError: when it cannot be read, or ``judge`` refuses it
    """
    try:
        with open(path, encoding="utf-8") as file:
            return judge(json.load(file))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None


def check(config):
    """Return ``config`` with its defaults, or raise :class:`ConfigError` naming what is wrong with it."""
    check_keys("the configuration", config, {"redis", "accounts", "replicas", "host", "address", *_PORTS}, {"key_prefix", *NUMBERS})
    config = {name: default for name, default in _TEXTS.items() if default is not None} | {name: one[0] for name, one in NUMBERS.items()} | config
    for name, (_default, least, most) in NUMBERS.items():
        kinds = int if name in _WHOLE else (int, float)
        if not isinstance(config[name], kinds) or isinstance(config[name], bool) or not least <= config[name] <= most:
            raise ConfigError(f"{name} is {config[name]!r}; it must be a {'whole number' if kinds is int else 'number'} from {least} to {most}.")
    for smaller, larger in (("low_ratio", "high_ratio"), ("pause_seconds", "pause_max_seconds"), ("body_max_bytes", "max_bytes")):
        if config[smaller] > config[larger]:
            raise ConfigError(f"{smaller} is {config[smaller]}; it must be at most {larger}, {config[larger]}.")
    for name in _TEXTS:
        check_text(name, config[name])
    for name in _PORTS:
        if not isinstance(config[name], int) or isinstance(config[name], bool) or not 0 < config[name] < 65536:
            raise ConfigError(f"{name} is {config[name]!r}; it must be a port from 1 to 65535.")
    check_redis(config["redis"])
    _check_accounts(config["accounts"])
    _check_replicas(config["replicas"], {account_name(one) for one in config["accounts"]})
    return config


def account_name(account):
    """An account's name, ``channel/account``."""
    return f"{account['channel']}/{account['account']}"


def endpoint(where):
    """(host, port) of ``host:port``; an IPv6 address stands in brackets.

    :raises ConfigError: when it is not that
    """
    host, _colon, port = where.rpartition(":") if isinstance(where, str) else ("", "", "")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"an address of redis is {where!r}; it must be host:port.")
    return host, int(port)


def secret(where):
    """The content of a secret's file, as bytes without the line's end; a bare name stands in systemd's directory of credentials.

    :raises ConfigError: when it cannot be read, or is empty
    """
    path = where if os.path.isabs(where) else os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", "/run/credentials/openclaw-ingress.service"), where)
    try:
        content = pathlib.Path(path).read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"the secret {path} cannot be read: {error.strerror}.") from None
    if not content:
        raise ConfigError(f"the secret {path} is empty; it must be one line.")
    return content


def check_keys(where, given, required, optional=()):
    """Refuse what is no object, lacks a key, or has an unknown one."""
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is {_short(given)}; it must be a JSON object.")
    if missing := required - set(given):
        raise ConfigError(f"{where} lacks {', '.join(sorted(missing))}; it has {', '.join(sorted(given)) or 'nothing'}.")
    if unknown := set(given) - required - set(optional):
        raise ConfigError(f"{where} has the unknown {', '.join(sorted(unknown))}; it may have {', '.join(sorted({*required, *optional}))}.")


def check_text(where, value):
    """Refuse what is no text, or an empty one, or holds control characters."""
    if not isinstance(value, str) or not value or any(ord(char) < 32 for char in value):
        raise ConfigError(f"{where} is {_short(value)}; it must be a text that is not empty.")


def check_list(where, value, empty=False):
    """Refuse what is no list, or an empty one unless ``empty``."""
    if not isinstance(value, list) or not (value or empty):
        raise ConfigError(f"{where} is {_short(value)}; it must be a list{'' if empty else ' that is not empty'}.")


def check_url(where, value):
    """Refuse what is no URL of http or https."""
    parts = urllib.parse.urlsplit(value) if isinstance(value, str) else None
    if not parts or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"{where} is {_short(value)}; it must be a URL of http or https.")


def _short(value):
    return repr(value)[:80]


def check_redis(redis):
    """Refuse what does not lead to Redis."""
    check_keys("redis", redis, set(), _REDIS)
    if ("address" in redis) == ("sentinels" in redis):
        raise ConfigError(f"redis has {', '.join(sorted(redis)) or 'nothing'}; it must have either address or sentinels.")
    if "address" in redis:
        endpoint(redis["address"])
    else:
        check_list("redis.sentinels", redis["sentinels"])
        for one in redis["sentinels"]:
            endpoint(one)
        check_text("redis.monitor", redis.get("monitor"))
    for key in ("user", "password_file", "sentinel_user", "sentinel_password_file"):
        if key in redis:
            check_text(f"redis.{key}", redis[key])
    if redis.get("tls") is not None:
        check_keys("redis.tls", redis["tls"], {"ca", "cert", "key"})
        for key, value in redis["tls"].items():
            check_text(f"redis.tls.{key}", value)


def _check_accounts(accounts):
    check_list("accounts", accounts)
    taken = {"/health": "the ingress"}
    for number, one in enumerate(accounts):
        where = f"accounts[{number}]"
        if not isinstance(one, dict) or one.get("type") not in TYPES:
            raise ConfigError(f"{where}.type is {_short(one.get('type') if isinstance(one, dict) else one)}; it must be one of {', '.join(TYPES)}.")
        shared = one["type"] == "shared_secret"
        check_keys(where, one, _ACCOUNT | ({"header", "event"} if shared else set()), {"claim", *_FIELDS[1:]} if shared else {"claim"})
        for key in _ACCOUNT - {"secrets"} | ({"header"} if shared else set()):
            check_text(f"{where}.{key}", one[key])
        if not one["path"].startswith("/") or set(one["path"]) & set("?#{} "):
            raise ConfigError(f"{where}.path is {one['path']!r}; it must be a plain path that begins with /.")
        for key in (one["path"], account_name(one)):
            if key in taken:
                raise ConfigError(f"{where} has {key!r}, and so has {taken[key]}; it must be its own.")
            taken[key] = where
        check_list(f"{where}.secrets", one["secrets"])
        for value in one["secrets"]:
            check_text(f"{where}.secrets", value)
        for key in _FIELDS:
            if key in one and (not isinstance(one[key], str) or one[key].partition(":")[0] not in ("header", "body") or not one[key].partition(":")[2]):
                raise ConfigError(f"{where}.{key} is {_short(one[key])}; it must be header:NAME or body:KEY.KEY.")
        _check_claim(f"{where}.claim", one.get("claim", ""))


def _check_claim(where, template):
    allowed = f"it must be a text with fields of {', '.join(CLAIM_FIELDS)} in braces"
    try:
        fields = {field for _text, field, _spec, _conversion in string.Formatter().parse(template) if field is not None}
    except (ValueError, TypeError):
        raise ConfigError(f"{where} is {_short(template)}; {allowed}.") from None
    if fields - set(CLAIM_FIELDS):
        raise ConfigError(f"{where} is {template!r}; {allowed}.")


def _check_replicas(replicas, accounts):
    check_list("replicas", replicas, empty=True)
    ids = set()
    for number, one in enumerate(replicas):
        where = f"replicas[{number}]"
        check_keys(where, one, {"id", "verdict_url", "webhooks"})
        check_text(f"{where}.id", one["id"])
        if one["id"] in ids:
            raise ConfigError(f"{where}.id is {one['id']!r}; it must be its own, and another replica has it.")
        ids.add(one["id"])
        check_url(f"{where}.verdict_url", one["verdict_url"])
        check_keys(f"{where}.webhooks", one["webhooks"], set(), accounts)
        for account, url in one["webhooks"].items():
            check_url(f"{where}.webhooks[{account}]", url)
