"""The configuration: whole with its defaults, or refused with one sentence."""

from __future__ import annotations

import copy
import json

import pytest
from openclaw_ingress import config

CRM = {"channel": "crm", "account": "a", "type": "shared_secret", "path": "/crm", "secrets": ["crm"], "header": "X-Key", "event": "header:X-Id"}
GOOD = {
    "host": "node1",
    "address": "192.0.2.1",
    "port": 18600,
    "status_port": 18601,
    "redis": {"address": "192.0.2.1:6379"},
    "accounts": [{"channel": "telegram", "account": "default", "type": "telegram", "path": "/telegram", "secrets": ["telegram"]}, CRM],
    "replicas": [{"id": "r1", "verdict_url": "http://192.0.2.1:18700/health", "webhooks": {"telegram/default": "http://192.0.2.1:8787/telegram-webhook"}}],
}


def test_defaults():
    checked = config.check(GOOD)
    assert checked["max_age_seconds"] == 3600 and checked["key_prefix"] == "oc:" and checked["quiet_seconds"] == 120 and checked["lease_seconds"] == 10
    assert config.check(checked) == checked
    assert all(least <= default <= most for default, least, most in config.NUMBERS.values())


def changed(where, value):
    document = copy.deepcopy(GOOD)
    *path, last = where
    target = document
    for one in path:
        target = target[one]
    if value is None:
        del target[last]
    else:
        target[last] = value
    return document


@pytest.mark.parametrize(
    ("where", "value", "sentence"),
    [
        (["host"], None, "the configuration lacks host; it has accounts, address,"),
        (["colour"], 1, "the configuration has the unknown colour; it may have accounts, address,"),
        (["host"], "", "host is ''; it must be a text that is not empty."),
        (["port"], 70000, "port is 70000; it must be a port from 1 to 65535."),
        (["port"], True, "port is True; it must be a port"),
        (["max_events"], 0, "max_events is 0; it must be a whole number from 1 to 10000000."),
        (["max_events"], 1.5, "max_events is 1.5; it must be a whole number"),
        (["quiet_seconds"], "20", "quiet_seconds is '20'; it must be a number from 0.1 to 3600."),
        (["quiet_seconds"], True, "quiet_seconds is True; it must be a number"),
        (["low_ratio"], 0.9, "low_ratio is 0.9; it must be at most high_ratio, 0.8."),
        (["redis"], {}, "redis has nothing; it must have either address or sentinels."),
        (["redis"], {"address": "x"}, "an address of redis is 'x'; it must be host:port."),
        (["redis"], {"sentinels": ["a:1"]}, "redis.monitor is None; it must be a text"),
        (["redis", "tls"], {"ca": "x"}, "redis.tls lacks cert, key; it has ca."),
        (["redis", "colour"], 1, "redis has the unknown colour; it may have address,"),
        (["accounts"], [], "accounts is []; it must be a list that is not empty."),
        (["accounts", 0, "type"], "discord", "accounts[0].type is 'discord'; it must be one of telegram, slack, shared_secret."),
        (["accounts", 0, "header"], "X", "accounts[0] has the unknown header; it may have account, channel,"),
        (["accounts", 0, "path"], "telegram", "accounts[0].path is 'telegram'; it must be a plain path"),
        (["accounts", 0, "path"], "/{x}", "accounts[0].path is '/{x}'; it must be a plain path"),
        (["accounts", 0, "path"], "/health", "accounts[0] has '/health', and so has the ingress; it must be its own."),
        (["accounts", 1, "path"], "/telegram", "accounts[1] has '/telegram', and so has accounts[0]; it must be its own."),
        (["accounts", 0, "secrets"], [], "accounts[0].secrets is []; it must be a list that is not empty."),
        (["accounts", 0, "claim"], "{colour}", "accounts[0].claim is '{colour}'; it must be a text with fields of channel, account,"),
        (["accounts", 0, "claim"], "{", "accounts[0].claim is '{'; it must be a text with fields"),
        (["accounts", 1, "event"], None, "accounts[1] lacks event; it has account,"),
        (["accounts", 1, "event"], "x", "accounts[1].event is 'x'; it must be header:NAME or body:KEY.KEY."),
        (["replicas", 0, "verdict_url"], "x", "replicas[0].verdict_url is 'x'; it must be a URL of http or https."),
        (["replicas", 0, "webhooks"], {"x/y": "http://a"}, "replicas[0].webhooks has the unknown x/y; it may have crm/a, telegram/default."),
        (["replicas"], GOOD["replicas"] * 2, "replicas[1].id is 'r1'; it must be its own"),
    ],
)
def test_what_is_refused(where, value, sentence):
    with pytest.raises(config.ConfigError) as caught:
        config.check(changed(where, value))
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_a_file(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(config.ConfigError, match="cannot be read: No such file"):
        config.load(path)
    path.write_text("{")
    with pytest.raises(config.ConfigError, match="config.json: Expecting"):
        config.load(path)
    path.write_text(json.dumps(GOOD))
    assert config.load(path) == config.check(GOOD)


def test_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    (tmp_path / "name").write_text(" one \n")
    (tmp_path / "empty").write_text("\n")
    assert config.secret("name") == config.secret(str(tmp_path / "name")) == b"one"
    with pytest.raises(config.ConfigError, match="is empty; it must be one line"):
        config.secret("empty")
    with pytest.raises(config.ConfigError, match="the secret .*/none cannot be read"):
        config.secret("none")
