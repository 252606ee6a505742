# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a gateway replica reads at its start, computed from topology and variables.

Pure: plain data in, plain data out. Secrets never enter the documents built here; they name environment variables.
"""

from __future__ import annotations

import copy
import ipaddress
import os
import re

from ansible_collections.openclaw.ha.plugins.module_utils import channels, jobs

PLUGIN_ID = "shared-state"
TOKEN_VARIABLE = "OPENCLAW_GATEWAY_TOKEN_HA"
REDIS_VARIABLE = "OPENCLAW_HA_REDIS_PASSWORD"
SENTINEL_VARIABLE = "OPENCLAW_HA_SENTINEL_PASSWORD"

#: Provider type -> OpenClaw's name of the protocol, and defaults of an entry (seconds, tries after the first, tokens).
PROVIDER_TYPES = {
    "openai-compatible": {
        "api": "openai-completions",
        "timeout": 10,
        "retries": 2,
        "context_window": 128000,
        "max_tokens": 4096,
    },
    "ollama": {"api": "ollama", "timeout": 30, "retries": 1, "context_window": 32768, "max_tokens": 2048},
}

#: Tools that change what only one replica has: its workspace, its memory, its schedules, its host.
STATEFUL_TOOLS = ("write", "edit", "apply_patch", "exec", "process", "automations", "skill_workshop", "gateway")

#: OpenClaw's own names for sets of tools, as far as they hold one of the above, and its aliases.
TOOL_GROUPS = {
    "group:fs": ("write", "edit", "apply_patch"),
    "group:runtime": ("exec", "process"),
    "group:automation": ("automations", "gateway"),
    "group:agents": ("skill_workshop",),
    "group:openclaw": ("automations", "gateway", "skill_workshop"),
    "bash": ("exec",),
    "cron": ("automations",),
    "*": STATEFUL_TOOLS,
}

#: Bundled plugins, on by default, that offer what one host or one paired device has: a browser, a screen, files.
LOCAL_PLUGINS = (
    "browser",
    "canvas",
    "cua-computer",
    "device-pair",
    "file-transfer",
    "geolocation",
    "linux-node",
    "talk-voice",
)

#: OpenClaw gives up a whole turn after five calls without a sign of life, so the fourth must be a provider's last.
MOST_RETRIES = 3

#: Defaults of the circuit breaker and of the rate limits (0 = none).
BREAKER = {"failures": 3, "open_seconds": 30}
RATE_LIMIT = {"requests_per_minute": 0, "per_key_per_minute": 0, "burst": 10}

_ZERO_DURATION = re.compile(r"0+(ms|s|m|h|d)?")


class GatewayConfigError(ValueError):
    """Topology and variables make no gateway configuration; the text says what is wrong and what to write."""


# --- what must not be in gateway_extra_config ---------------------------------------------------------------------


def stateless_violations(extra_config, tools_deny, replica_count):
    """Name the settings that a set of active replicas cannot have.

    :param extra_config: ``gateway_extra_config``, the mapping merged into every replica's openclaw.json
    :param tools_deny: ``gateway_tools_deny``, the list of tools that the model may not use
    :param replica_count: number of replicas in the cluster
    :returns: list of sentences, one for each violation, in a stable order; empty when all is well. Settings that the
        role itself owns are refused for any number of replicas; settings that would run once for each replica, or
        leave each replica with something different, only for more than one.
    """
    extra = extra_config or {}
    found = [
        f"gateway_extra_config sets {path}, which belongs to the role: {remedy}."
        for path, remedy in _OWNED
        if _at(extra, path)
    ]
    if replica_count > 1:
        for path, is_wrong, reason in _RULES:
            found += [
                f"gateway_extra_config sets {where} to {value!r}, but {reason}; remove it, or run one replica."
                for where, value in _at(extra, path)
                if is_wrong(value)
            ]
        found += _channel_violations(extra.get("channels"))
        allowed = [tool for tool in STATEFUL_TOOLS if tool not in _denied(tools_deny)]
        if allowed:
            found.append(
                f"gateway_tools_deny leaves {', '.join(allowed)} allowed, but what such a tool changes stays on one "
                f"replica and the next turn may be answered by another; deny it, or run one replica."
            )
    return found


def _anything(value):
    return value is not None


def _is_on(value):
    return value is not False


def _not(*good):
    return lambda value: value not in good


def _runs(duration):
    return not _ZERO_DURATION.fullmatch(str(duration).strip())


_OWNED = (
    ("gateway.port", "set gateway_port in the inventory"),
    ("gateway.mode", "every replica serves by itself"),
    ("gateway.reload", "changes are taken over by one replica after the other"),
    ("gateway.bind", "set topology_address or topology_interface in the inventory"),
    ("gateway.customBindHost", "set topology_address or topology_interface in the inventory"),
    ("gateway.auth.mode", "replicas accept the one token in gateway_token"),
    ("gateway.auth.token", "set gateway_token"),
    ("gateway.auth.password", "set gateway_token"),
    ("gateway.trustedProxies", "it follows the hosts in the group openclaw_balancers"),
    ("agents.defaults.workspace", "each replica has its own, by gateway version"),
    ("agents.entries.*.workspace", "each replica has its own, by gateway version"),
    ("agents.entries.*.agentDir", "it lies in each replica's own state directory"),
    ("agents.defaults.model", "set gateway_providers"),
    ("plugins.slots.contextEngine", f"conversations are shared by the plugin {PLUGIN_ID}"),
    (f"plugins.entries.{PLUGIN_ID}", "its settings follow the topology"),
    ("session.store", "sessions lie in each replica's own state directory"),
    ("tools.deny", "set gateway_tools_deny"),
)

_EACH = "each replica would do it on its own"
_RULES = (
    ("agents.defaults.heartbeat.every", _runs, f"heartbeat turns: {_EACH}"),
    ("agents.entries.*.heartbeat.every", _runs, f"heartbeat turns: {_EACH}"),
    ("cron.enabled", _is_on, f"scheduled jobs: {_EACH}"),
    ("cron.triggers.enabled", _is_on, f"scheduled jobs: {_EACH}"),
    ("skills.workshop.autonomous.mode", _not("off"), "each replica would learn different skills"),
    ("update.checkOnStart", _is_on, "versions are set by gateway_version, not by each replica"),
    ("update.auto.enabled", _is_on, "versions are set by gateway_version, not by each replica"),
    ("models.catalogRefresh.enabled", _is_on, "replicas would know different models"),
    ("discovery.mdns.mode", _not("off"), "each replica would announce itself instead of the balancer"),
    ("gateway.controlUi.enabled", _is_on, "its device pairing is known to one replica only"),
    ("agents.defaults.compaction.memoryFlush.enabled", _is_on, "memory files stay on one replica"),
    ("memory.search.enabled", _is_on, "memory files stay on one replica"),
    ("agents.entries.*.memory.search.enabled", _is_on, "memory files stay on one replica"),
    ("plugins.slots.memory", _not("none"), "memory files stay on one replica"),
    ("plugins.entries.memory-core.config.dreaming.enabled", _is_on, f"dreaming: {_EACH}"),
    ("plugins.entries.active-memory.enabled", _is_on, "memory files stay on one replica"),
    ("plugins.entries.memory-wiki.enabled", _is_on, "memory files stay on one replica"),
    ("plugins.entries.imap.enabled", _is_on, f"reading the mailbox: {_EACH}"),
    ("hooks.gmail", _anything, f"watching the mailbox: {_EACH}"),
    ("transcripts.autoStart", _anything, f"recording meetings: {_EACH}"),
    ("diagnostics.enabled", _not(True), "it says when a gateway is through with a channel's message"),
    (
        "session.dmScope",
        _not("per-channel-peer", "per-account-channel-peer"),
        "conversations are shared by channel and person",
    ),
)

#: Channels whose account allows one live connection: an owner among the replicas would have to be elected.
_ONE_CONNECTION = ("whatsapp", "discord", "signal", "imessage", "irc", "matrix", "mattermost", "zalouser")


def _channel_violations(channels):
    found = []
    for name, channel in (channels or {}).items():
        if name in ("defaults", "modelByChannel") or not isinstance(channel, dict) or channel.get("enabled") is False:
            continue
        if _single_owner(name, channel):
            found.append(
                f"gateway_extra_config enables channels.{name}, which allows one live connection, but every replica "
                f"would open its own; use its webhook mode where it has one, or run one replica."
            )
        inherited = _dm_policy(channel, "pairing")
        policies = {f"channels.{name}": inherited}
        for account, value in (channel.get("accounts") or {}).items():
            if isinstance(value, dict):
                policies[f"channels.{name}.accounts.{account}"] = _dm_policy(value, inherited)
        found += [
            f"gateway_extra_config leaves {where}.dmPolicy at pairing, but an approval is known to one replica only; "
            f"set it to allowlist with allowFrom, or to open or disabled."
            for where, policy in policies.items()
            if policy == "pairing"
        ]
    return found


def _single_owner(name, channel):
    if name == "telegram":
        return not channel.get("webhookUrl")
    if name == "slack":
        return channel.get("mode", "socket") != "http"
    return name in _ONE_CONNECTION


def _dm_policy(channel, inherited):
    nested = channel.get("dm")
    return channel.get("dmPolicy") or (nested.get("policy") if isinstance(nested, dict) else None) or inherited


def _denied(tools_deny):
    return {tool for entry in tools_deny or () for tool in (entry, *TOOL_GROUPS.get(entry, ()))}


def _at(data, path):
    """The (path, value) pairs of ``data`` that match a dotted path; ``*`` stands for any key, None counts as absent."""
    found = [("", data)]
    for part in path.split("."):
        found = [
            (f"{where}.{key}".lstrip("."), value[key])
            for where, value in found
            if isinstance(value, dict)
            for key in (value if part == "*" else [part])
            if value.get(key) is not None
        ]
    return found


# --- providers ----------------------------------------------------------------------------------------------------


def provider_id(name):
    """OpenClaw's key of a provider: lower case letters, digits and single dashes."""
    return re.sub(r"[^a-z0-9]+", "-", str(name).lower()).strip("-")


def provider_variable(name):
    """Name of the environment variable that carries a provider's key."""
    return "OPENCLAW_PROVIDER_KEY_" + provider_id(name).replace("-", "_").upper()


def provider_problems(providers, has_ollama):
    """Say in one sentence each what is wrong with ``gateway_providers``; ``has_ollama``: the cluster runs its own."""
    if not providers:
        return ["gateway_providers is empty; name at least one provider, the first is the primary."]
    problems = []
    seen = {}
    for number, provider in enumerate(providers, 1):
        where = f"gateway_providers entry {number}"
        if not isinstance(provider, dict) or not provider_id(provider.get("name", "")):
            problems.append(f"{where} has no name; give it one of letters and digits.")
            continue
        where += f" ({provider['name']})"
        kind = provider.get("type")
        if kind not in PROVIDER_TYPES:
            problems.append(f"{where} has type {kind!r}; known types are {', '.join(sorted(PROVIDER_TYPES))}.")
        if not provider.get("model"):
            problems.append(f"{where} names no model.")
        endpoint = provider.get("endpoint")
        if endpoint and not re.match(r"https?://[^/\s]+", str(endpoint)):
            problems.append(f"{where} has endpoint {endpoint!r}; it must be an http:// or https:// address.")
        if kind == "openai-compatible" and not endpoint:
            problems.append(f"{where} has no endpoint, such as https://provider.example/v1.")
        if kind == "ollama" and not endpoint and not has_ollama:
            problems.append(f"{where} has no endpoint, and the group openclaw_ollama is empty.")
        for key, least in (("timeout", 1), ("retries", 0), ("context_window", 1), ("max_tokens", 1)):
            value = provider.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                problems.append(f"{where} has {key} {value!r}; it must be a whole number of at least {least}.")
        same = seen.setdefault(provider_id(provider["name"]), number)
        if same != number:
            problems.append(f"{where} has the same name as entry {same}; names must differ.")
    return problems


def provider_chain(providers, topology, replica):
    """Resolve ``gateway_providers`` for one replica.

    An entry of type ollama without endpoint stands for the cluster's own Ollama hosts, the nearest first: the
    replica's own host, its datacenter, the others.

    :returns: list of dicts with id, api, endpoint, model, variable (or None), timeout (s) and retries as asked for,
        context_window, max_tokens, last (it stems from the last of ``gateway_providers``)
    :raises GatewayConfigError: see :func:`provider_problems`
    """
    problems = provider_problems(providers, bool(topology["ollama"]))
    if problems:
        raise GatewayConfigError(" ".join(problems))
    nearest = sorted(
        topology["ollama"],
        key=lambda node: (node["host"] != replica["host"], node["datacenter"] != replica["datacenter"]),
    )
    chain = []
    for provider in providers:
        defaults = PROVIDER_TYPES[provider["type"]]
        own = [f"http://{node['address']}:{node['port']}" for node in nearest]
        for number, endpoint in enumerate([provider["endpoint"]] if provider.get("endpoint") else own, 1):
            chain.append(
                {
                    "id": provider_id(provider["name"]) + ("" if number == 1 else f"-{number}"),
                    "api": defaults["api"],
                    "endpoint": str(endpoint).rstrip("/"),
                    "model": str(provider["model"]),
                    "variable": provider_variable(provider["name"]) if provider.get("api_key") else None,
                    "last": provider is providers[-1],
                    **{
                        key: defaults[key] if provider.get(key) is None else provider[key]
                        for key in ("timeout", "retries", "context_window", "max_tokens")
                    },
                }
            )
    repeated = sorted({entry["id"] for entry in chain if [other["id"] for other in chain].count(entry["id"]) > 1})
    if repeated:
        raise GatewayConfigError(f"gateway_providers makes two providers called {', '.join(repeated)}; rename one.")
    return chain


def _guards(options):
    """The plugin's settings of breaker and rate limits.

    :raises GatewayConfigError: for a value that is no whole number or too small
    """

    def whole(name, value, least):
        try:
            number = int(str(value))
        except ValueError:
            number = None
        if number is None or number < least:
            raise GatewayConfigError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
        return number

    rate = {**RATE_LIMIT, **(options.get("rate_limit") or {})}
    failures = options.get("breaker_failures", BREAKER["failures"])
    seconds = options.get("breaker_open_seconds", BREAKER["open_seconds"])
    return {
        "breakerFailures": whole("gateway_breaker_failures", failures, 0),
        "breakerOpenSeconds": whole("gateway_breaker_open_seconds", seconds, 1),
        "rateLimit": {
            name: whole(f"gateway_rate_limit.{key}", rate[key], least)
            for name, key, least in (
                ("requestsPerMinute", "requests_per_minute", 0),
                ("perKeyPerMinute", "per_key_per_minute", 0),
                ("burst", "burst", 1),
            )
        },
    }


# --- the documents ------------------------------------------------------------------------------------------------


def pace(chain):
    """How often and how patiently each provider is asked, so that a failing one holds a turn up for a known time.

    A provider with a successor is left within ``timeout * (retries + 1) + 1`` seconds, whatever its failure. OpenClaw
    knows one number of retries for the whole chain (the primary's is taken) and pauses between tries, so the pauses
    come out of the timeouts. Fewer retries are taken where less than half of a timeout would be left. The last of
    ``gateway_providers`` keeps its own timeout: nobody stands behind it.

    :param chain: see :func:`provider_chain`
    :returns: dict with ``retries`` and ``timeouts`` (whole seconds, one for each entry of the chain)
    """
    choices = (
        (retries, [entry["timeout"] if entry["last"] else _patience(entry, retries) for entry in chain])
        for retries in range(min(chain[0]["retries"], MOST_RETRIES), -1, -1)
    )
    # Without retries there are no pauses and nothing is taken, so one choice always fits.
    retries, timeouts = next(
        (retries, timeouts)
        for retries, timeouts in choices
        if all(2 * patience >= entry["timeout"] for patience, entry in zip(timeouts, chain))
    )
    return {"retries": retries, "timeouts": timeouts}


def _patience(entry, retries):
    """Seconds that each of ``retries + 1`` tries may take: pauses are 1, 2, 4 s, each up to half as long again."""
    bound = entry["timeout"] * (entry["retries"] + 1) + 1
    pauses = 1.5 * (2**retries - 1)
    overhead = 0.5
    return min(entry["timeout"], int((bound - pauses - overhead) / (retries + 1)))


def settings(chain):
    """OpenClaw's settings.json: how often it tries one provider again before it moves on to the next.

    Without the file a failing primary holds a turn for more than a minute, and a hanging one is never left. A provider
    that asks for a longer pause than its timeout is left at once.
    """
    left = [entry["timeout"] * 1000 for entry in chain if not entry["last"]]
    longest = {"maxRetryDelayMs": min(left)} if left else {}
    return {"retry": {"provider": {"maxRetries": pace(chain)["retries"], **longest}}}


def config(replica, topology, options):
    """Build one replica's openclaw.json.

    :param replica: an entry of ``topology["replicas"]``
    :param topology: see module_utils/topology.py
    :param options: dict with providers, tools_deny, extra_config, turn_timeout (s), conversation_ttl (s),
        skills, plugin, state, workspace and spool (the replica's own paths), tls (directory of certificates); breaker_failures, breaker_open_seconds
        and rate_limit where they differ from BREAKER and RATE_LIMIT; jobs (``gateway_jobs``); channels (``gateway_channels``) with public_url,
        switches (path of the file with the accounts that the replica owns) where there are any
    :raises GatewayConfigError: when an address, a provider or a channel cannot be used
    """
    listed = options.get("channels") or []
    chain = provider_chain(options["providers"], topology, replica)
    timeouts = pace(chain)["timeouts"]
    models = [f"{entry['id']}/{entry['model']}" for entry in chain]
    ollama = next((entry["endpoint"] for entry in chain if entry["api"] == "ollama"), "")
    try:
        packages, scheduled = channels.packages(listed), jobs.config(options.get("jobs") or [], listed)
    except (channels.ChannelError, jobs.JobError) as error:
        raise GatewayConfigError(str(error)) from None
    built = {
        "gateway": {
            "mode": "local",
            "port": replica["port"],
            "bind": "custom",
            "customBindHost": _ipv4(replica["host"], replica["address"]),
            "auth": {"mode": "token", "token": "${" + TOKEN_VARIABLE + "}"},
            # The gateway answers 403 to whatever a proxy forwards that is not listed here.
            "trustedProxies": _unique(["127.0.0.1"] + [_ip(node) for node in topology["balancers"]]),
            "controlUi": {"enabled": False},
            "terminal": {"enabled": False},
            "http": {"endpoints": {"chatCompletions": {"enabled": True}}},
        },
        "models": {
            "mode": "replace",
            "catalogRefresh": {"enabled": False},
            "providers": {entry["id"]: _provider(entry, timeout) for entry, timeout in zip(chain, timeouts)},
        },
        "agents": {
            "defaults": {
                "workspace": options["workspace"],
                "skipBootstrap": True,
                "timeoutSeconds": int(options["turn_timeout"]),
                "model": {"primary": models[0], "fallbacks": models[1:]},
                "heartbeat": {"every": "0m"},
                "compaction": {"memoryFlush": {"enabled": False}},
            }
        },
        # With several accounts OpenClaw leaves out the account's name where it is the replica's default one, and which one that is depends on which
        # accounts the replica has: the replicas would not mean the same conversation.
        "session": {"dmScope": "per-account-channel-peer" if listed else "per-channel-peer"},
        # Reading stays within workspace and skills: a gateway's environment is no business of a model.
        "tools": {"deny": list(options["tools_deny"]), "fs": {"workspaceOnly": True}},
        # Bundled skills come and go with what is installed on a host, so replicas would differ: only ours are offered.
        "skills": {
            "allowBundled": ["none"],
            "load": {"extraDirs": [options["skills"]], "watch": True},
            "workshop": {"autonomous": {"mode": "off"}},
        },
        # All replicas look at the clock; which one does what, the plugin decides. What was missed is over.
        "cron": {"enabled": True, "skipMissedJobs": True} if scheduled else {"enabled": False},
        "update": {"checkOnStart": False},
        "discovery": {"mdns": {"mode": "off"}},
        "memory": {"search": {"enabled": False}},
        # Replies are logged at level info: the file, which keeps them longer than the journal, goes without.
        "logging": {"file": f"{options['state']}/gateway.log", "level": "warn", "maxFileBytes": 20971520},
        "plugins": {
            "load": {"paths": [options["plugin"]]},
            "slots": {"contextEngine": PLUGIN_ID, "memory": "none"},
            "entries": {
                PLUGIN_ID: {
                    "enabled": True,
                    "hooks": {"allowConversationAccess": True},
                    "config": {
                        "replica": replica["id"],
                        "sentinels": [
                            {"host": node["address"], "port": node["port"]} for node in topology["sentinels"]
                        ],
                        "redisUser": "app",
                        "sentinelUser": "client",
                        **({"tls": _tls(options["tls"])} if topology["redis_tls"] else {}),
                        "monitorName": topology["monitor"]["name"],
                        # Any replica may be the next primary, so a turn waits for the confirmation of all.
                        "waitReplicas": len(topology["redis"]) - 1,
                        "keyPrefix": "oc:",
                        "conversationTtlSeconds": int(options["conversation_ttl"]),
                        "turnTimeoutSeconds": int(options["turn_timeout"]),
                        "spoolDir": options["spool"],
                        "ollamaUrl": ollama,
                        "gatewayUrl": f"http://127.0.0.1:{replica['port']}",
                        "peersFile": options["peers"],
                        "balancerHost": any(node["address"] == replica["address"] for node in topology["balancers"]),
                        "providers": [_watched(entry, timeout) for entry, timeout in zip(chain, timeouts)],
                        **_guards(options),
                        **({"jobs": scheduled} if scheduled else {}),
                        **({"webhooks": True} if channels.webhooks(listed) else {}),
                    },
                },
                **{name: {"enabled": False} for name in LOCAL_PLUGINS},
                **{name.rsplit("/", 1)[1]: {"enabled": True} for name in packages},
            },
        },
    }
    if listed:
        built["channels"] = channels.config(listed, replica, options["public_url"], options["switches"])
    return merge(built, options.get("extra_config") or {})


def _tls(directory):
    """Where the role ``certificate`` puts a user's files."""
    return {name: f"{directory}/{name}.pem" for name in ("ca", "cert", "key")}


def environment(replica, options):
    """The replica's environment without secrets: it alone decides which release and which Node.js the unit starts.

    :param options: dict with config (path of openclaw.json), state, home, release and node_bin (directories); jobs, channels and switches, see :func:`config`
    """
    switched = channels.singletons(options.get("channels"))
    return {
        "PATH": f"{options['node_bin']}:/usr/local/bin:/usr/bin:/bin",
        "HOME": options["home"],
        "NO_COLOR": "1",
        "OPENCLAW_RELEASE": options["release"],
        "OPENCLAW_CONFIG_PATH": options["config"],
        "OPENCLAW_STATE_DIR": options["state"],
        # The configuration is this role's: the gateway refuses to write it, and does not replace itself.
        "OPENCLAW_CONFIG_READONLY": "1",
        "OPENCLAW_NO_AUTO_UPDATE": "1",
        "OPENCLAW_NO_RESPAWN": "1",
        **({} if options.get("jobs") else {"OPENCLAW_SKIP_CRON": "1"}),
        "OPENCLAW_DISABLE_BONJOUR": "1",
        "OPENCLAW_HA_REPLICA": replica["id"],
        # OpenClaw includes nothing from elsewhere that is not named here.
        **({"OPENCLAW_INCLUDE_ROOTS": os.path.dirname(options["switches"])} if switched else {}),
    }


def includes(options):
    """Files that the configuration includes and others write, with the most that they ever hold: path -> document."""
    listed = options.get("channels")
    return {options["switches"]: channels.all_owned(listed)} if channels.singletons(listed) else {}


def secrets(providers, token, redis_password, sentinel_password, extra, listed=None):
    """The secret part of the environment, the same for all replicas of a host; ``extra`` wins nothing it must not.

    :param listed: ``gateway_channels``
    :raises GatewayConfigError: when they cannot be used
    """
    try:
        of_channels = channels.secrets(listed or [])
    except channels.ChannelError as error:
        raise GatewayConfigError(str(error)) from None
    keys = {provider_variable(entry["name"]): entry["api_key"] for entry in providers if entry.get("api_key")}
    return {
        **(extra or {}),
        **keys,
        **of_channels,
        TOKEN_VARIABLE: token,
        REDIS_VARIABLE: redis_password,
        SENTINEL_VARIABLE: sentinel_password,
    }


def env_file(variables):
    """Write a mapping as a systemd EnvironmentFile, sorted by name, one quoted value a line.

    :raises GatewayConfigError: for a name or value that systemd would not read back as it is
    """
    lines = []
    for name, value in sorted(variables.items()):
        text = "" if value is None else str(value)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            raise GatewayConfigError(f"{name!r} is no name of an environment variable.")
        if any(ord(character) < 32 or ord(character) == 127 for character in text):
            raise GatewayConfigError(f"The value of {name} holds a line break or another control character.")
        lines.append(f'{name}="' + re.sub(r'(["\\$`])', r"\\\1", text) + '"\n')
    return "".join(lines)


def peers(topology, datacenter):
    """What stands in the file of peers: all replicas of a datacenter, which share its Redis, and each other's memory while it is away."""
    return [{"id": one["id"], "url": f"http://{one['address']}:{one['port']}"} for one in topology["replicas"] if one["datacenter"] == datacenter]


def read_env_file(text):
    """What :func:`env_file` has written, as a mapping of texts."""
    found = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator:
            found[name] = re.sub(r"\\(.)", r"\1", value.strip().removeprefix('"').removesuffix('"'))
    return found


def merge(base, extra):
    """``base`` with ``extra`` laid over it: mappings are merged key by key, everything else is replaced."""
    result = copy.deepcopy(base)
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = merge(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def _provider(entry, timeout):
    free = {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0}
    key = {"source": "env", "provider": "default", "id": entry["variable"]} if entry["variable"] else "none"
    return {
        "baseUrl": entry["endpoint"],
        "apiKey": key,
        "api": entry["api"],
        "timeoutSeconds": timeout,
        "models": [
            {
                "id": entry["model"],
                "name": entry["model"],
                "reasoning": False,
                "input": ["text"],
                "cost": free,
                "contextWindow": entry["context_window"],
                "maxTokens": entry["max_tokens"],
            }
        ],
    }


def _watched(entry, timeout):
    """A provider as the plugin's breaker knows it; the key stays in the environment."""
    return {
        "id": entry["id"],
        "model": entry["model"],
        "api": entry["api"],
        "endpoint": entry["endpoint"],
        "timeoutSeconds": timeout,
        **({"keyVariable": entry["variable"]} if entry["variable"] else {}),
    }


def _ipv4(host, address):
    try:
        return str(ipaddress.IPv4Address(address))
    except ValueError:
        raise GatewayConfigError(
            f"{host}: the gateway listens on an IPv4 address, and {address!r} is none; set topology_address or "
            f"topology_interface for this host."
        ) from None


def _ip(node):
    try:
        return str(ipaddress.ip_address(node["address"]))
    except ValueError:
        raise GatewayConfigError(
            f"{node['host']}: gateways know the balancers by IP address, and {node['address']!r} is none; set "
            f"topology_address or topology_interface for this host."
        ) from None


def _unique(items):
    return list(dict.fromkeys(items))
