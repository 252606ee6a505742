from __future__ import annotations

import json
import pathlib
import subprocess

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.openclaw.ha.plugins.module_utils import gateway_config as pure
from ansible_collections.openclaw.ha.plugins.module_utils import topology

CLOUD = {
    "name": "Cloud LLM",
    "type": "openai-compatible",
    "endpoint": "https://llm.example/v1/",
    "model": "m-1",
    "api_key": "s3cret",
}
OLLAMA = {"name": "ollama", "type": "ollama", "model": "llama3.2:1b"}
DENY = ["write", "edit", "apply_patch", "group:runtime", "group:automation", "skill_workshop"]


def cluster(**variables):
    names = ["node1", "node2", "node3"]
    hostvars = {name: {"topology_address": f"192.0.2.{number}", **variables} for number, name in enumerate(names, 11)}
    groups = {
        "openclaw_gateways": names,
        "openclaw_redis": names,
        "openclaw_balancers": names[:2],
        "openclaw_ollama": names[1:],
    }
    return topology.build(groups, hostvars)


def options(**more):
    return {
        "providers": [CLOUD, OLLAMA],
        "tools_deny": DENY,
        "extra_config": {},
        "turn_timeout": 120,
        "conversation_ttl": 604800,
        "skills": "/opt/openclaw/skills",
        "plugin": "/opt/openclaw/plugins/shared_state",
        "config": "/etc/openclaw/gateway/1/openclaw.json",
        "home": "/var/lib/openclaw/1",
        "spool": "/var/lib/openclaw/1/spool",
        "state": "/var/lib/openclaw/1/2026.9.6/state",
        "workspace": "/var/lib/openclaw/1/2026.9.6/workspace",
        "release": "/opt/openclaw/releases/2026.9.6",
        "node_bin": "/opt/openclaw/node/24.19.0/bin",
        "tls": "/etc/openclaw/tls",
        "peers": "/etc/openclaw/gateway-peers.json",
        **more,
    }


def chain(*providers):
    top = cluster()
    return pure.provider_chain(list(providers), top, top["replicas"][0])


def settings(*providers):
    return pure.settings(chain(*providers))["retry"]["provider"]


def built(index=0, **more):
    top = cluster()
    return pure.config(top["replicas"][index], top, options(**more))


class TestConfig:
    def test_gateway_listens_on_its_address_and_trusts_the_balancers(self):
        gateway = built(2)["gateway"]
        assert (gateway["bind"], gateway["customBindHost"], gateway["port"]) == ("custom", "192.0.2.13", 18789)
        assert gateway["trustedProxies"] == ["127.0.0.1", "192.0.2.11", "192.0.2.12"]
        assert gateway["auth"] == {"mode": "token", "token": "${OPENCLAW_GATEWAY_TOKEN_HA}"}
        assert gateway["http"]["endpoints"]["chatCompletions"]["enabled"] is True

    def test_the_virtual_address_is_no_proxy(self):
        """What a balancer sends comes from the host's own address, whoever holds the virtual one."""
        top = cluster()
        top["balancers"] = [{**node, "vip": "192.0.2.10"} for node in top["balancers"]]
        assert pure.config(top["replicas"][0], top, options())["gateway"]["trustedProxies"] == ["127.0.0.1", "192.0.2.11", "192.0.2.12"]

    def test_what_would_run_on_each_replica_is_off(self):
        made = built()
        assert made["agents"]["defaults"]["heartbeat"] == {"every": "0m"}
        assert made["agents"]["defaults"]["compaction"]["memoryFlush"] == {"enabled": False}
        assert made["cron"] == {"enabled": False}
        assert made["update"] == {"checkOnStart": False}
        assert made["models"]["catalogRefresh"] == {"enabled": False}
        assert made["skills"]["workshop"]["autonomous"] == {"mode": "off"}
        assert made["discovery"]["mdns"] == {"mode": "off"}
        assert made["gateway"]["controlUi"] == {"enabled": False}
        assert made["plugins"]["slots"]["memory"] == "none"
        assert made["session"] == {"dmScope": "per-channel-peer"}
        assert made["tools"] == {"deny": DENY, "fs": {"workspaceOnly": True}}

    def test_the_generated_configuration_keeps_its_own_rules(self):
        assert [v for v in pure.stateless_violations(built(), DENY, 3) if "belongs to the role" not in v] == []

    def test_who_is_trusted_as_a_proxy_knows_it(self):
        trusted = [built(number)["plugins"]["entries"]["shared-state"]["config"]["balancerHost"] for number in range(3)]
        addresses = [f"192.0.2.{number}" for number in (11, 12, 13)]
        assert trusted == [address in built()["gateway"]["trustedProxies"] for address in addresses]
        assert trusted == [True, True, False]

    def test_the_plugin_gets_its_part_of_the_topology(self):
        entry = built(1)["plugins"]["entries"]["shared-state"]
        assert entry["enabled"] is True and entry["hooks"] == {"allowConversationAccess": True}
        assert entry["config"] == {
            "replica": "node2-1",
            "sentinels": [{"host": f"192.0.2.{number}", "port": 26379} for number in (11, 12, 13)],
            "redisUser": "app",
            "sentinelUser": "client",
            "tls": {name: f"/etc/openclaw/tls/{name}.pem" for name in ("ca", "cert", "key")},
            "monitorName": "openclaw",
            "waitReplicas": 2,
            "keyPrefix": "oc:",
            "conversationTtlSeconds": 604800,
            "turnTimeoutSeconds": 120,
            "spoolDir": "/var/lib/openclaw/1/spool",
            "ollamaUrl": "http://192.0.2.12:11434",
            "gatewayUrl": "http://127.0.0.1:18789",
            "peersFile": "/etc/openclaw/gateway-peers.json",
            "balancerHost": True,
            "providers": [
                {
                    "id": "cloud-llm",
                    "model": "m-1",
                    "api": "openai-completions",
                    "endpoint": "https://llm.example/v1",
                    "timeoutSeconds": 8,
                    "keyVariable": "OPENCLAW_PROVIDER_KEY_CLOUD_LLM",
                },
                *(
                    {
                        "id": name,
                        "model": "llama3.2:1b",
                        "api": "ollama",
                        "endpoint": endpoint,
                        "timeoutSeconds": 30,
                    }
                    for name, endpoint in (
                        ("ollama", "http://192.0.2.12:11434"),
                        ("ollama-2", "http://192.0.2.13:11434"),
                    )
                ),
            ],
            "breakerFailures": 3,
            "breakerOpenSeconds": 30,
            "rateLimit": {"requestsPerMinute": 0, "perKeyPerMinute": 0, "burst": 10},
        }

    def test_peers_are_the_replicas_of_the_datacenter(self):
        assert [peer["id"] for peer in pure.peers(cluster(gateway_replicas=4), "main")] == ["node1-1", "node2-1", "node3-1", "node1-2"]
        assert pure.peers(cluster(), "main")[0] == {"id": "node1-1", "url": "http://192.0.2.11:18789"}
        apart = cluster()
        for replica in apart["replicas"]:
            replica["datacenter"] = "east" if replica["host"] == "node3" else "west"
        assert [[peer["id"] for peer in pure.peers(apart, name)] for name in ("west", "east")] == [["node1-1", "node2-1"], ["node3-1"]]

    def test_replicas_that_come_or_go_restart_no_other(self):
        three, five = cluster(), cluster(gateway_replicas=5)
        assert pure.config(three["replicas"][0], three, options()) == pure.config(five["replicas"][0], five, options())

    def test_breaker_and_rate_limits_are_settings(self):
        made = built(
            breaker_failures="0", breaker_open_seconds="5", rate_limit={"requests_per_minute": "60", "burst": 3}
        )["plugins"]["entries"]["shared-state"]["config"]
        assert (made["breakerFailures"], made["breakerOpenSeconds"]) == (0, 5)
        assert made["rateLimit"] == {"requestsPerMinute": 60, "perKeyPerMinute": 0, "burst": 3}

    def test_the_roles_defaults_are_the_same(self):
        role = pathlib.Path(pure.__file__).resolve().parents[2] / "roles/gateway"
        defaults = yaml.safe_load((role / "defaults/main.yml").read_text())
        specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
        for name, value in (
            ("gateway_breaker_failures", pure.BREAKER["failures"]),
            ("gateway_breaker_open_seconds", pure.BREAKER["open_seconds"]),
            ("gateway_rate_limit", pure.RATE_LIMIT),
        ):
            assert defaults[name] == specs[name]["default"] == value

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("breaker_failures", -1),
            ("breaker_open_seconds", 0),
            ("breaker_open_seconds", "soon"),
            ("rate_limit", {"burst": 0}),
            ("rate_limit", {"per_key_per_minute": 1.5}),
            ("rate_limit", {"requests_per_minute": True}),
        ],
    )
    def test_wrong_numbers_are_refused(self, name, value):
        with pytest.raises(pure.GatewayConfigError, match=f"gateway_{name}.* must be a whole number"):
            built(**{name: value})

    def test_replicas_differ_only_in_what_is_their_own(self):
        one, other = built(0), built(1)
        one["gateway"]["customBindHost"] = other["gateway"]["customBindHost"]
        for settings in (made["plugins"]["entries"]["shared-state"]["config"] for made in (one, other)):
            settings["replica"] = ""
        assert one == other

    def test_numbers_given_as_text_become_numbers(self):
        made = built(turn_timeout="90", conversation_ttl="60")
        assert made["agents"]["defaults"]["timeoutSeconds"] == 90
        assert made["plugins"]["entries"]["shared-state"]["config"]["conversationTtlSeconds"] == 60

    def test_extra_config_is_merged_key_by_key(self):
        made = built(extra_config={"gateway": {"http": {"x": 1}}, "logging": {"level": "info"}, "tools": {"fs": None}})
        assert made["gateway"]["http"] == {"endpoints": {"chatCompletions": {"enabled": True}}, "x": 1}
        assert made["logging"]["level"] == "info" and made["logging"]["file"].startswith("/var/lib/openclaw/1/")
        assert made["tools"]["fs"] is None

    def test_no_secret_enters_it(self):
        assert "s3cret" not in json.dumps(built())

    @pytest.mark.parametrize("host", ["node1", "node3"])
    def test_an_address_that_is_no_ip_is_refused(self, host):
        top = cluster()
        for node in [*top["replicas"], *top["balancers"]]:
            if node["host"] == host:
                node["address"] = "gateway.example"
        with pytest.raises(pure.GatewayConfigError, match=f"^{host}: .*gateway.example.*topology_address"):
            pure.config(top["replicas"][2 if host == "node3" else 1], top, options())


class TestProviders:
    def test_the_first_is_the_primary(self):
        made = built()
        assert made["agents"]["defaults"]["model"] == {
            "primary": "cloud-llm/m-1",
            "fallbacks": ["ollama/llama3.2:1b", "ollama-2/llama3.2:1b"],
        }
        cloud = made["models"]["providers"]["cloud-llm"]
        assert cloud["baseUrl"] == "https://llm.example/v1"
        assert cloud["apiKey"] == {"source": "env", "provider": "default", "id": "OPENCLAW_PROVIDER_KEY_CLOUD_LLM"}
        assert (cloud["api"], cloud["timeoutSeconds"]) == ("openai-completions", 8)
        assert (
            made["models"]["providers"]["ollama"]["api"],
            made["models"]["providers"]["ollama"]["timeoutSeconds"],
        ) == ("ollama", 30)

    def test_own_ollama_hosts_the_nearest_first(self):
        top = cluster()
        endpoints = [entry["endpoint"] for entry in pure.provider_chain([OLLAMA], top, top["replicas"][2])]
        assert endpoints == ["http://192.0.2.13:11434", "http://192.0.2.12:11434"]
        top["hosts"]["node2"]["datacenter"] = top["ollama"][0]["datacenter"] = "other"
        endpoints = [entry["endpoint"] for entry in pure.provider_chain([OLLAMA], top, top["replicas"][0])]
        assert endpoints == ["http://192.0.2.13:11434", "http://192.0.2.12:11434"]

    def test_a_named_ollama_stays_alone(self):
        top = cluster()
        chain = pure.provider_chain(
            [{**OLLAMA, "endpoint": "http://10.0.0.1:11434", "timeout": 5}], top, top["replicas"][0]
        )
        assert [(entry["endpoint"], entry["timeout"]) for entry in chain] == [("http://10.0.0.1:11434", 5)]

    @pytest.mark.parametrize(
        ("change", "text"),
        [
            ({"type": "openai"}, "type 'openai'; known types are ollama, openai-compatible"),
            ({"name": "--"}, "entry 1 has no name"),
            ({"model": ""}, "names no model"),
            ({"endpoint": "llm.example"}, "must be an http:// or https:// address"),
            ({"endpoint": ""}, "has no endpoint, such as"),
            ({"timeout": 0}, "timeout 0; it must be a whole number of at least 1"),
            ({"timeout": "10"}, "timeout '10'"),
            ({"retries": -1}, "retries -1; it must be a whole number of at least 0"),
            ({"retries": True}, "retries True"),
            ({"name": "OLLAMA"}, "same name as entry 1"),
        ],
    )
    def test_problems(self, change, text):
        found = pure.provider_problems([{**CLOUD, **change}, OLLAMA], True)
        assert len(found) == 1 and text in found[0]

    def test_no_provider(self):
        assert "is empty" in pure.provider_problems([], True)[0]

    def test_ollama_without_host_or_endpoint(self):
        assert "the group openclaw_ollama is empty" in pure.provider_problems([OLLAMA], False)[0]
        assert pure.provider_problems([CLOUD, OLLAMA], True) == []

    def test_a_wrong_chain_makes_no_configuration(self):
        with pytest.raises(pure.GatewayConfigError, match="names no model"):
            built(providers=[{**CLOUD, "model": ""}])

    def test_a_name_that_meets_a_numbered_one_is_refused(self):
        top = cluster()
        providers = [OLLAMA, {**CLOUD, "name": "ollama 2"}]
        with pytest.raises(pure.GatewayConfigError, match="two providers called ollama-2"):
            pure.provider_chain(providers, top, top["replicas"][0])

    @given(st.text())
    def test_ids_and_variables_are_well_formed(self, name):
        assert set(pure.provider_id(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
        assert set(pure.provider_variable(name)) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")

    def test_retries_are_the_primarys(self):
        assert settings(CLOUD, OLLAMA) == {"maxRetries": 2, "maxRetryDelayMs": 10000}
        assert settings({**CLOUD, "retries": 0}, OLLAMA) == {"maxRetries": 0, "maxRetryDelayMs": 10000}
        assert settings(OLLAMA) == {"maxRetries": 1}

    @pytest.mark.parametrize(
        ("timeout", "retries", "expected"),
        [
            (10, 2, {"retries": 2, "timeouts": [8, 30, 30]}),
            (10, 0, {"retries": 0, "timeouts": [10, 30, 30]}),
            # Half of the timeout is the least: a retry less, and the whole timeout.
            (2, 2, {"retries": 1, "timeouts": [2, 30, 30]}),
            (1, 1, {"retries": 0, "timeouts": [1, 30, 30]}),
            # Five calls without a sign of life, and OpenClaw would not go on to the next provider at all.
            (60, 9, {"retries": 3, "timeouts": [60, 30, 30]}),
        ],
    )
    def test_pauses_come_out_of_the_timeout(self, timeout, retries, expected):
        assert pure.pace(chain({**CLOUD, "timeout": timeout, "retries": retries}, OLLAMA)) == expected

    def test_a_provider_in_the_middle_is_left_in_time_too(self):
        middle = {**CLOUD, "name": "other", "timeout": 20, "retries": 1}
        assert pure.pace(chain(CLOUD, middle, OLLAMA))["timeouts"] == [8, 12, 30, 30]

    @given(timeout=st.integers(1, 600), retries=st.integers(0, 20))
    def test_a_failing_primary_is_left_in_time(self, timeout, retries):
        made = pure.pace(chain({**CLOUD, "timeout": timeout, "retries": retries}, OLLAMA))
        tries, patience = made["retries"] + 1, made["timeouts"][0]
        longest_pauses = sum(1.5 * 2**number for number in range(made["retries"]))
        assert tries * patience + longest_pauses < timeout * (retries + 1) + 1
        assert timeout / 2 <= patience <= timeout
        assert tries <= retries + 1 and tries < 5


class TestEnvironment:
    def test_it_selects_release_and_node(self):
        variables = pure.environment(cluster()["replicas"][0], options())
        assert variables["PATH"].startswith("/opt/openclaw/node/24.19.0/bin:")
        assert variables["OPENCLAW_RELEASE"] == "/opt/openclaw/releases/2026.9.6"
        assert (
            variables["OPENCLAW_CONFIG_READONLY"]
            == variables["OPENCLAW_NO_AUTO_UPDATE"]
            == variables["OPENCLAW_SKIP_CRON"]
            == "1"
        )

    def test_secrets(self):
        assert pure.secrets([CLOUD, OLLAMA], "tok", "r", "s", {"BOT": "b", "OPENCLAW_GATEWAY_TOKEN_HA": "other"}) == {
            "BOT": "b",
            "OPENCLAW_PROVIDER_KEY_CLOUD_LLM": "s3cret",
            "OPENCLAW_GATEWAY_TOKEN_HA": "tok",
            "OPENCLAW_HA_REDIS_PASSWORD": "r",
            "OPENCLAW_HA_SENTINEL_PASSWORD": "s",
        }

    @given(st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]))))
    def test_env_file_can_be_read_back(self, variables):
        assert pure.read_env_file(pure.env_file(variables)) == variables

    def test_env_file_is_sorted_and_quoted(self):
        assert pure.env_file({"B": 'a "b" $c `d` \\e', "A": None}) == 'A=""\nB="a \\"b\\" \\$c \\`d\\` \\\\e"\n'

    def test_a_shell_reads_back_what_was_written(self, tmp_path):
        value = "a b\"c'd$e`f\\g#h;i!~*é"
        (tmp_path / "env").write_text(pure.env_file({"VALUE": value}))
        out = subprocess.run(
            ["/bin/sh", "-c", '. "$0"; printf %s "$VALUE"', str(tmp_path / "env")], capture_output=True, check=True
        )
        assert out.stdout.decode() == value

    @pytest.mark.parametrize("variables", [{"A": "x\ny"}, {"A": "\x00"}, {"1A": "x"}, {"A-B": "x"}, {"": "x"}])
    def test_what_systemd_would_not_read_back_is_refused(self, variables):
        with pytest.raises(pure.GatewayConfigError):
            pure.env_file(variables)

    def test_the_refusal_does_not_tell_the_value(self):
        with pytest.raises(pure.GatewayConfigError) as caught:
            pure.env_file({"KEY": "s3cret\n"})
        assert "s3cret" not in str(caught.value)


def nested(path, value):
    for part in reversed(path.split(".")):
        value = {part: value}
    return value


OWNED = [
    ("gateway.port", 1),
    ("gateway.bind", "lan"),
    ("gateway.auth.token", "x"),
    ("gateway.trustedProxies", []),
    ("agents.defaults.workspace", "/x"),
    ("agents.entries.one.workspace", "/x"),
    ("agents.defaults.model", "a/b"),
    ("plugins.slots.contextEngine", "legacy"),
    ("plugins.entries.shared-state", {}),
    ("session.store", "/x"),
    ("tools.deny", []),
]
WRONG = [
    ("agents.defaults.heartbeat.every", "30m"),
    ("agents.entries.one.heartbeat.every", "1h"),
    ("cron.enabled", True),
    ("cron.triggers.enabled", True),
    ("skills.workshop.autonomous.mode", "auto"),
    ("update.checkOnStart", True),
    ("update.auto.enabled", True),
    ("models.catalogRefresh.enabled", True),
    ("discovery.mdns.mode", "minimal"),
    ("gateway.controlUi.enabled", True),
    ("agents.defaults.compaction.memoryFlush.enabled", True),
    ("memory.search.enabled", True),
    ("plugins.slots.memory", "memory-core"),
    ("plugins.entries.memory-core.config.dreaming.enabled", True),
    ("plugins.entries.imap.enabled", True),
    ("hooks.gmail", {"account": "a"}),
    ("session.dmScope", "main"),
    ("diagnostics.enabled", False),
]
HARMLESS = [
    ("agents.defaults.heartbeat.every", "0m"),
    ("agents.defaults.heartbeat.every", 0),
    ("cron.enabled", False),
    ("skills.workshop.autonomous.mode", "off"),
    ("session.dmScope", "per-account-channel-peer"),
    ("plugins.slots.memory", "none"),
    ("logging.level", "info"),
    ("gateway.http.endpoints.responses.enabled", True),
    ("cron", None),
    ("diagnostics.enabled", True),
]


class TestStateless:
    @pytest.mark.parametrize(("path", "value"), OWNED)
    @pytest.mark.parametrize("replicas", [1, 3])
    def test_what_the_role_owns(self, path, value, replicas):
        found = pure.stateless_violations(nested(path, value), DENY, replicas)
        assert len(found) == 1 and found[0].startswith(
            f"gateway_extra_config sets {path.replace('entries.one', 'entries.*')}"
        )

    @pytest.mark.parametrize(("path", "value"), WRONG)
    def test_what_would_run_or_differ_on_each_replica(self, path, value):
        found = pure.stateless_violations(nested(path, value), DENY, 2)
        assert len(found) == 1 and found[0].startswith(f"gateway_extra_config sets {path} to {value!r}, but ")
        assert pure.stateless_violations(nested(path, value), DENY, 1) == []

    @pytest.mark.parametrize(("path", "value"), HARMLESS)
    def test_what_is_harmless(self, path, value):
        assert pure.stateless_violations(nested(path, value), DENY, 3) == []

    @pytest.mark.parametrize(
        ("channel", "text"),
        [
            ({"telegram": {"webhookUrl": "https://x", "dmPolicy": "allowlist"}}, None),
            ({"telegram": {"webhookUrl": "https://x"}}, "channels.telegram.dmPolicy at pairing"),
            ({"telegram": {"webhookUrl": "https://x", "dmPolicy": "pairing"}}, "channels.telegram.dmPolicy at pairing"),
            ({"telegram": {"dmPolicy": "open"}}, "channels.telegram, which allows one live connection"),
            ({"telegram": {"enabled": False}}, None),
            ({"slack": {"mode": "http", "dm": {"policy": "allowlist"}}}, None),
            ({"slack": {"dmPolicy": "open"}}, "channels.slack, which allows one live connection"),
            ({"whatsapp": {"dmPolicy": "allowlist"}}, "channels.whatsapp, which allows one live connection"),
            (
                {"line": {"dmPolicy": "open", "accounts": {"a": {"dmPolicy": "pairing"}}}},
                "channels.line.accounts.a.dmPolicy",
            ),
            ({"line": {"dmPolicy": "open", "accounts": {"a": {}}}}, None),
            ({"defaults": {"groupPolicy": "open"}, "modelByChannel": {"x": {}}}, None),
        ],
    )
    def test_channels(self, channel, text):
        found = pure.stateless_violations({"channels": channel}, DENY, 3)
        assert (len(found) == 1 and text in found[0]) if text else found == []
        assert pure.stateless_violations({"channels": channel}, DENY, 1) == []

    def test_tools_that_write_must_be_denied(self):
        found = pure.stateless_violations({}, ["group:fs", "exec", "cron"], 3)
        assert len(found) == 1 and "leaves process, skill_workshop, gateway allowed" in found[0]
        assert pure.stateless_violations({}, [], 1) == []
        assert "leaves write, edit" in pure.stateless_violations(None, None, 2)[0]

    @pytest.mark.parametrize("deny", [DENY, ["*"], [*pure.STATEFUL_TOOLS]])
    def test_tools_by_name_group_or_all(self, deny):
        assert pure.stateless_violations({}, deny, 3) == []

    def test_the_roles_default_denies_enough(self):
        import pathlib

        import yaml

        root = pathlib.Path(pure.__file__).resolve().parents[2]
        defaults = yaml.safe_load((root / "roles" / "gateway" / "defaults" / "main.yml").read_text())
        assert pure.stateless_violations(defaults["gateway_extra_config"], defaults["gateway_tools_deny"], 9) == []

    def test_order_is_stable_and_all_are_named(self):
        extra = pure.merge(nested("cron.enabled", True), nested("gateway.port", 1))
        first = pure.stateless_violations(extra, [], 3)
        assert len(first) == 3 and first == pure.stateless_violations(extra, [], 3)

    @given(
        st.recursive(
            st.none() | st.booleans() | st.text(), lambda inner: st.dictionaries(st.text(), inner), max_leaves=8
        )
    )
    def test_any_mapping_is_judged_without_an_error(self, extra):
        wrapped = {"channels": {"x": extra}, "agents": extra, "cron": extra}
        assert isinstance(pure.stateless_violations(wrapped, DENY, 3), list)


def test_a_single_redis_is_not_waited_for():
    single = topology.build(
        {"openclaw_gateways": ["node1"], "openclaw_redis": ["node1"], "openclaw_ollama": ["node1"]},
        {"node1": {"ansible_host": "192.0.2.11"}},
    )
    built = pure.config(single["replicas"][0], single, options())
    assert built["plugins"]["entries"]["shared-state"]["config"]["waitReplicas"] == 0


TELEGRAM = {"type": "telegram", "mode": "webhook", "secrets": {"bot_token": "1:t0ken", "webhook_secret": "w3bhook"}, "allow_from": [42]}
WHATSAPP = {"type": "whatsapp", "account": "main", "allow_from": ["+15550001"]}


def with_channels(*entries):
    return {
        "channels": list(entries),
        "public_url": "https://claw.example.org",
        "switches": "/run/openclaw-owner/1/channels.json",
    }


def test_channels_and_their_plugins():
    document = built(**with_channels(TELEGRAM, WHATSAPP))
    assert document["channels"]["$include"] == "/run/openclaw-owner/1/channels.json"
    assert document["channels"]["telegram"]["accounts"]["default"]["webhookPort"] == 18900
    assert document["plugins"]["entries"]["whatsapp"] == {"enabled": True}
    assert "channels" not in built() and "t0ken" not in json.dumps(document)
    # A replica that owns an account has more of them than the others, and must mean the same conversations.
    assert document["session"]["dmScope"] == "per-account-channel-peer" and built()["session"]["dmScope"] == "per-channel-peer"


def test_what_is_included_is_allowed_and_checked_with_all_that_it_may_hold():
    given = options(**with_channels(TELEGRAM, WHATSAPP))
    assert pure.includes(given) == {"/run/openclaw-owner/1/channels.json": {"whatsapp": {"enabled": True, "accounts": {"main": {
        "enabled": True, "configWrites": False, "dmPolicy": "allowlist", "allowFrom": ["+15550001"], "groupPolicy": "disabled"}}}}}  # fmt: skip
    replica = cluster()["replicas"][0]
    assert pure.environment(replica, given)["OPENCLAW_INCLUDE_ROOTS"] == "/run/openclaw-owner/1"
    for nobody in (options(), options(**with_channels(TELEGRAM))):
        assert pure.includes(nobody) == {} and "OPENCLAW_INCLUDE_ROOTS" not in pure.environment(replica, nobody)


def test_secrets_of_channels_are_in_the_environment():
    found = pure.secrets([CLOUD], "t", "r", "s", {"OPENCLAW_CHANNEL_TELEGRAM_DEFAULT_BOT_TOKEN": "mine"}, [TELEGRAM])
    assert found["OPENCLAW_CHANNEL_TELEGRAM_DEFAULT_BOT_TOKEN"] == "1:t0ken" and found["OPENCLAW_CHANNEL_TELEGRAM_DEFAULT_WEBHOOK_SECRET"] == "w3bhook"
    for function in (lambda: pure.secrets([CLOUD], "t", "r", "s", {}, [{"type": "icq"}]), lambda: built(channels=[{"type": "icq"}])):
        with pytest.raises(pure.GatewayConfigError, match="gateway_channels entry 1: found type 'icq'"):
            function()


def test_without_jobs_nobody_looks_at_the_clock_and_with_them_everybody_does():
    replica, job = cluster()["replicas"][0], {"name": "report", "schedule": "0 8 * * *", "message": "What is new?"}
    assert built()["cron"] == {"enabled": False} and pure.environment(replica, options())["OPENCLAW_SKIP_CRON"] == "1"
    document = built(jobs=[job])
    assert document["cron"] == {"enabled": True, "skipMissedJobs": True}
    assert document["plugins"]["entries"]["shared-state"]["config"]["jobs"][0]["key"] == "report"
    assert "OPENCLAW_SKIP_CRON" not in pure.environment(replica, options(jobs=[job]))
    with pytest.raises(pure.GatewayConfigError, match="gateway_jobs entry 1"):
        built(jobs=[{"name": "x"}])
