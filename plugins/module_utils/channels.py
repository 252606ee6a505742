# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``gateway_channels``: which accounts the gateways have, in which mode, and what each replica's openclaw.json says of them. Pure."""

from __future__ import annotations

import re

#: Who may receive: every replica, or one at a time, because the provider allows one connection for each account.
EVERY, ONE = "every", "one"

#: Type of a channel -> its npm package (None: part of OpenClaw), and its modes: who may receive, which secrets it needs, and where webhooks go
#: to: a listener of the channel itself (``listener``) or a route of the gateway (``route``).
TYPES = {
    "telegram": {
        "package": None,
        "modes": {
            "webhook": {"receivers": EVERY, "secrets": ("bot_token", "webhook_secret"), "webhook": "listener"},
            "polling": {"receivers": ONE, "secrets": ("bot_token",)},
        },
    },
    "slack": {
        "package": "@openclaw/slack",
        "modes": {
            "http": {"receivers": EVERY, "secrets": ("bot_token", "signing_secret"), "webhook": "route"},
            "socket": {"receivers": ONE, "secrets": ("bot_token", "app_token")},
        },
    },
    "discord": {"package": "@openclaw/discord", "modes": {"gateway": {"receivers": ONE, "secrets": ("token",)}}},
    "whatsapp": {"package": "@openclaw/whatsapp", "modes": {"web": {"receivers": ONE, "secrets": ()}}},
    "signal": {"package": "@openclaw/signal", "modes": {"daemon": {"receivers": ONE, "secrets": ()}}},
}

#: OpenClaw derives ports of its own from a replica's first one, up to +110; replicas on one host are 120 apart.
FIRST_LISTENER = 111
MOST_LISTENERS = 9

#: A webhook's path on the balancers, and on the replica.
PATH = "/webhooks/{type}/{account}"

_ACCOUNT = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_SECRET_NAME = re.compile(r"[a-z][a-z0-9_]*")
_TELEGRAM_SECRET = re.compile(r"[A-Za-z0-9_-]{1,256}")
_KEYS = ("type", "account", "mode", "secrets", "allow_from", "settings")
#: Keys of ``settings`` that this module writes, or that would undo what it promises.
_OWNED = ("enabled", "mode", "webhookUrl", "webhookPath", "webhookHost", "webhookPort", "allowFrom", "configWrites", "accounts")


class ChannelError(ValueError):
    """``gateway_channels`` makes no configuration; the text names the entry, what was found, what is allowed and what to do."""


def problems(entries):
    """Say in one sentence each what is wrong with ``gateway_channels``.

    :param entries: list of dicts with ``type``, ``account`` (default ``default``), ``mode`` (may be left out where there is one), ``secrets``
        (name -> value), ``allow_from`` (list; who may write to it) and ``settings`` (a part of the account in openclaw.json)
    :returns: list of sentences without any secret; empty when all is well
    """
    if not isinstance(entries, list):
        return [f"gateway_channels: found a {type(entries).__name__}; allowed a list of accounts; correct it."]
    found, seen, listeners = [], {}, 0
    for number, entry in enumerate(entries, 1):
        where = f"gateway_channels entry {number}"
        if not isinstance(entry, dict) or entry.get("type") not in TYPES:
            shown = entry.get("type") if isinstance(entry, dict) else type(entry).__name__
            found.append(f"{where}: found type {shown!r}; allowed {', '.join(TYPES)}; correct it.")
            continue
        account = entry.get("account", "default")
        where += f" ({entry['type']}/{account})"
        unknown = [str(key) for key in entry if key not in _KEYS]
        if unknown:
            found.append(f"{where}: found {', '.join(unknown)}; allowed {', '.join(_KEYS)}; correct it.")
        if not isinstance(account, str) or not _ACCOUNT.fullmatch(account):
            found.append(f"{where}: found account {account!r}; allowed up to 32 of a-z, 0-9, - and _; rename it.")
            continue
        same = seen.setdefault((entry["type"], account), number)
        if same != number:
            found.append(f"{where}: found the account of entry {same} again; allowed once; give it another account, or remove one.")
        modes = TYPES[entry["type"]]["modes"]
        mode = _mode(entry)
        if mode not in modes:
            shown = f"mode {mode!r}" if mode else "no mode"
            found.append(f"{where}: found {shown}; allowed {', '.join(modes)}; say which one.")
            continue
        listeners += modes[mode].get("webhook") == "listener"
        found += [f"{where}: {problem}" for problem in _secret_problems(entry, modes[mode])]
        allow = entry.get("allow_from", [])
        if not isinstance(allow, list) or not all(isinstance(one, (str, int)) and not isinstance(one, bool) for one in allow):
            found.append(f"{where}: found allow_from that is no list of ids; allowed a list, such as [4242]; correct it.")
        elif not allow and not (entry.get("settings") or {}).get("dmPolicy"):
            found.append(
                f"{where}: found nobody in allow_from and no settings.dmPolicy; allowed ids of people who may write, or dmPolicy open or disabled; "
                f"pairing would be known to one replica only."
            )
        settings = entry.get("settings", {})
        if not isinstance(settings, dict):
            found.append(f"{where}: found settings that are no mapping; allowed a part of the account in openclaw.json; correct it.")
            continue
        owned = [key for key in settings if key in _OWNED or key in {_camel(name) for name in modes[mode]["secrets"]}]
        if owned:
            found.append(f"{where}: found settings.{', settings.'.join(owned)}, which the role sets itself; allowed other keys; remove it.")
        if settings.get("dmPolicy") == "pairing":
            found.append(
                f"{where}: found settings.dmPolicy pairing; allowed allowlist, open or disabled, because an approval is known to one replica only; change it."
            )
    if listeners > MOST_LISTENERS:
        found.append(
            f"gateway_channels: found {listeners} accounts of telegram in mode webhook; allowed {MOST_LISTENERS}, the ports between two replicas; use fewer."
        )
    return found


def _secret_problems(entry, mode):
    secrets = entry.get("secrets", {})
    if not isinstance(secrets, dict):
        yield "found secrets that are no mapping; allowed " + (", ".join(mode["secrets"]) or "none") + "; correct it."
        return
    for name in mode["secrets"]:
        value = secrets.get(name)
        if not isinstance(value, str) or not value.strip():
            yield f"found no secrets.{name}; allowed a text; set it, from a vault or a file."
        elif name == "webhook_secret" and not _TELEGRAM_SECRET.fullmatch(value):
            yield "found secrets.webhook_secret with other characters, or too long; allowed 1 to 256 of A-Z, a-z, 0-9, _ and -; change it."
    for name in secrets:
        if name not in mode["secrets"]:
            yield f"found secrets.{name}; allowed {', '.join(mode['secrets']) or 'none'} in this mode; remove it."


def _mode(entry):
    modes = list(TYPES[entry["type"]]["modes"])
    return entry.get("mode") or (modes[0] if len(modes) == 1 else None)


def accounts(entries):
    """The accounts in a form that roles can use.

    :returns: list of dicts with ``id`` (``type/account``), ``type``, ``account``, ``mode``, ``receivers`` (``every`` or ``one``), ``package``, ``path``
        (of its webhook, None for none), ``listener`` (which of a replica's listeners, None for the gateway's own port), ``variables`` (secret ->
        environment variable), ``allow_from`` and ``settings``; no secrets
    :raises ChannelError: see :func:`problems`
    """
    wrong = problems(entries)
    if wrong:
        raise ChannelError(" ".join(wrong))
    found, listeners = [], 0
    for entry in entries:
        kind, account = entry["type"], entry.get("account", "default")
        mode = TYPES[kind]["modes"][_mode(entry)]
        listener = None
        if mode.get("webhook") == "listener":
            listener, listeners = listeners, listeners + 1
        found.append(
            {
                "id": f"{kind}/{account}",
                "type": kind,
                "account": account,
                "mode": _mode(entry),
                "receivers": mode["receivers"],
                "package": TYPES[kind]["package"],
                "path": PATH.format(type=kind, account=account) if "webhook" in mode else None,
                "listener": listener,
                "variables": {name: variable(kind, account, name) for name in mode["secrets"]},
                "allow_from": entry.get("allow_from", []),
                "settings": entry.get("settings", {}),
            }
        )
    return found


def webhooks(entries):
    """Paths of all webhooks, sorted. Lenient: what is wrong with the entries, :func:`problems` says."""
    return sorted({PATH.format(type=kind, account=account) for kind, account, mode in _known(entries) if "webhook" in TYPES[kind]["modes"][mode]})


def singletons(entries):
    """Ids of the accounts that one replica may have at a time, in their order. Lenient as :func:`webhooks`."""
    return [f"{kind}/{account}" for kind, account, mode in _known(entries) if TYPES[kind]["modes"][mode]["receivers"] == ONE]


def _known(entries):
    for entry in entries if isinstance(entries, (list, tuple)) else ():
        if isinstance(entry, dict) and entry.get("type") in TYPES and _mode(entry) in TYPES[entry["type"]]["modes"]:
            yield entry["type"], entry.get("account", "default"), _mode(entry)


def variable(kind, account, name):
    """Environment variable that carries a secret of an account."""
    return "OPENCLAW_CHANNEL_" + "_".join(re.sub(r"[^A-Z0-9]", "_", part.upper()) for part in (kind, account, name))


def secrets(entries):
    """The secret part of a replica's environment: variable -> value."""
    given = {(entry["type"], entry.get("account", "default")): entry.get("secrets", {}) for entry in entries}
    return {name: given[one["type"], one["account"]][key] for one in accounts(entries) for key, name in one["variables"].items()}


def packages(entries):
    """npm packages of the channels, sorted; all are published in OpenClaw's own versions."""
    return sorted({one["package"] for one in accounts(entries) if one["package"]})


def listener_port(replica, account):
    """Port of a replica on which an account's webhooks arrive; the gateway's own where the channel has no listener."""
    return replica["port"] + (0 if account["listener"] is None else FIRST_LISTENER + account["listener"])


def config(entries, replica, public_url, switches):
    """The part ``channels`` of one replica's openclaw.json: accounts that every replica may have. The others are in a file that their owner writes.

    :param public_url: what providers reach the balancers by, such as ``https://claw.example.org``
    :param switches: path of that file
    """
    built = {}
    for one in accounts(entries):
        if one["receivers"] == EVERY:
            account = _account(one)
            if one["listener"] is not None:
                account |= {"webhookUrl": public_url.rstrip("/") + one["path"], "webhookHost": replica["address"], "webhookPort": listener_port(replica, one)}
            built = _laid_over(built, _in_place(one, account))
    if singletons(entries):
        built["$include"] = switches
    return built


def owned(entries):
    """Accounts that one replica may have at a time: id -> the part ``channels`` of openclaw.json that gives a replica this account."""
    return {one["id"]: _in_place(one, _account(one)) for one in accounts(entries) if one["receivers"] == ONE}


def all_owned(entries):
    """What a replica's file holds that owns all of them."""
    built = {}
    for part in owned(entries).values():
        built = _laid_over(built, part)
    return built


def _account(one):
    account = {
        "enabled": True,
        "configWrites": False,
        "dmPolicy": "allowlist",
        "allowFrom": list(one["allow_from"]),
        "groupPolicy": "disabled",
        **one["settings"],
        **{_camel(name): {"source": "env", "provider": "default", "id": where} for name, where in one["variables"].items()},
    }
    if one["type"] == "slack":
        account["mode"] = one["mode"]
    if one["path"]:
        account["webhookPath"] = one["path"]
    return account


def _in_place(one, account):
    return {one["type"]: {"enabled": True, "accounts": {one["account"]: account}}}


def _laid_over(one, other):
    """Two parts ``channels`` as one."""
    built = dict(one)
    for kind, part in other.items():
        before = built.get(kind, {"accounts": {}})
        built[kind] = {**before, **part, "accounts": {**before["accounts"], **part["accounts"]}}
    return built


#: Seconds that nobody may take an account after the end of a lease which was not given back: what its dead owner had asked for is over by then. Telegram
#: keeps a request for updates open for 30 s, and of two it ends the older one with a 409; a lease is longer than that.
LINGER = 5
#: Seconds that a lease must last, because of that.
LEASE_MINIMUM = 32


def singles(entries):
    """What the owners have to know of each account that one replica may have at a time, the part ``singletons`` of their configuration; no secrets."""
    return [{"id": name, "linger_seconds": LINGER, "section": "channels", "content": part} for name, part in owned(entries).items()]


def owner_replicas(replicas, directory):
    """The part ``replicas`` of their configuration.

    :param replicas: those of one host, as in the topology
    :param directory: in which each replica has one by the number of its instance
    """
    return [
        {
            "id": replica["id"],
            "unit": replica["unit"],
            "verdict_url": f"http://127.0.0.1:{replica['verdict_port']}/health",
            "sections": {"channels": f"{directory}/{replica['instance']}/channels.json"},
            "proof_url": f"http://127.0.0.1:{replica['port']}/api/v1/owned",
        }
        for replica in replicas
    ]


#: Type of a channel -> the secret by which its webhooks are told from others.
_PROOF = {"telegram": "webhook_secret", "slack": "signing_secret"}


def ingress(entries, replicas, directory):
    """What the ingresses have to know of channels and replicas, the parts ``accounts`` and ``replicas`` of their configuration; no secrets.

    :param replicas: those of the topology
    :param directory: where the files of :func:`ingress_secrets` are
    """
    heard = [one for one in accounts(entries) if one["path"]]
    return {
        "accounts": [
            {"channel": one["type"], "account": one["account"], "type": one["type"], "path": one["path"], "secrets": [f"{directory}/{_credential(one)}"]}
            for one in heard
        ],
        "replicas": [
            {
                "id": replica["id"],
                "verdict_url": f"http://{replica['address']}:{replica['verdict_port']}/health",
                "webhooks": {one["id"]: f"http://{replica['address']}:{listener_port(replica, one)}{one['path']}" for one in heard},
            }
            for replica in replicas
        ],
    }


def ingress_secrets(entries):
    """What proves that a webhook is the provider's: name of the file -> its content."""
    given = {(entry["type"], entry.get("account", "default")): entry.get("secrets", {}) for entry in entries}
    return {_credential(one): given[one["type"], one["account"]][_PROOF[one["type"]]] for one in accounts(entries) if one["path"]}


def _credential(account):
    return f"{account['type']}-{account['account']}"


def _camel(name):
    first, *rest = name.split("_")
    return first + "".join(part.title() for part in rest)
