"""The configuration: whole with its defaults, or refused with one sentence. And the files that it names."""

from __future__ import annotations

import copy
import json
import os

import pytest
from openclaw_owner import cli, config, files

POLL = {"id": "telegram/poll", "linger_seconds": 35, "section": "channels", "content": {"telegram": {"accounts": {"poll": {"enabled": True}}}}}
OTHER = POLL | {"id": "telegram/other", "content": {"telegram": {"accounts": {"other": {"enabled": True}}}}}
GOOD = {
    "host": "node1",
    "status_port": 18602,
    "redis": {"address": "192.0.2.1:6379"},
    "singletons": [POLL, OTHER, {"id": "cron", "linger_seconds": 0, "section": "cron", "content": {"enabled": True}}],
    "replicas": [
        {
            "id": "node1-1",
            "unit": "openclaw-gateway@1.service",
            "verdict_url": "http://127.0.0.1:18700/health",
            "sections": {"channels": "/run/openclaw-owner/1/channels.json", "cron": "/run/openclaw-owner/1/cron.json"},
            "proof_url": None,
        }
    ],
}
REPLICA = ["replicas", 0]


def test_defaults():
    checked = config.check(GOOD)
    assert checked["lease_seconds"] == 20 and checked["wait_replicas"] == 2 and checked["key_prefix"] == "oc:" and checked["systemctl"] == "systemctl"
    assert config.check(checked) == checked
    assert all(least <= default <= most for default, least, most in config.NUMBERS.values())
    assert config.check(GOOD | {"singletons": [], "replicas": []})["replicas"] == []


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
        (["host"], None, "the configuration lacks host; it has redis, replicas, singletons, status_port."),
        (["colour"], 1, "the configuration has the unknown colour; it may have "),
        (["host"], "", "host is ''; it must be a text that is not empty."),
        (["status_port"], 70000, "status_port is 70000; it must be a whole number from 1 to 65535."),
        (["status_port"], True, "status_port is True; it must be a whole number"),
        (["wait_replicas"], 1.5, "wait_replicas is 1.5; it must be a whole number from 0 to 100."),
        (["interval"], "1", "interval is '1'; it must be a number from 0.01 to 5."),
        (["stop_seconds"], 5, "stop_seconds is 5; it must be at least proof_seconds and fence_seconds, 6."),
        (["lease_seconds"], 11, "lease_seconds is 11; it must be at least stop_seconds and twice renew_seconds, 12."),
        (["redis"], {}, "redis has nothing; it must have either address or sentinels."),
        (["state_file"], "state.json", "state_file is 'state.json'; it must be the absolute path of a file."),
        (["singletons", 0, "content"], {}, "singletons[0].content is {}; it must be a JSON object that is not empty."),
        (["singletons", 0, "linger_seconds"], -1, "singletons[0].linger_seconds is -1; it must be a number from 0 to 86400."),
        (["singletons", 0, "section"], None, "singletons[0] lacks section; it has content, id, linger_seconds."),
        (["singletons", 1, "id"], "telegram/poll", "singletons[1].id is 'telegram/poll', and so is singletons[0].id; it must be its own."),
        (["singletons", 1, "content"], POLL["content"], "singletons[1].content has channels.telegram.accounts.poll.enabled, and so has singletons[0].content;"),
        (["singletons", 1, "content"], {"telegram": 1}, "singletons[1].content has channels.telegram, and so has singletons[0].content; it must be its own."),
        ([*REPLICA, "verdict_url"], "x", "replicas[0].verdict_url is 'x'; it must be a URL of http or https."),
        ([*REPLICA, "proof_url"], "x", "replicas[0].proof_url is 'x'; it must be a URL of http or https."),
        ([*REPLICA, "unit"], 1, "replicas[0].unit is 1; it must be a text that is not empty."),
        ([*REPLICA, "sections"], {"channels": "/a"}, "replicas[0].sections is {'channels': '/a'}; it must have a file for each of channels, cron."),
        ([*REPLICA, "sections", "cron"], "a", "replicas[0].sections.cron is 'a'; it must be the absolute path of a file."),
        ([*REPLICA, "sections", "x"], "/run/openclaw-owner/1/cron.json", "replicas[0].sections.x is '/run/openclaw-owner/1/cron.json', and so is"),
        (["replicas"], GOOD["replicas"] * 2, "replicas[1].id is 'node1-1', and so is replicas[0].id; it must be its own."),
    ],
)
def test_what_is_refused(where, value, sentence):
    with pytest.raises(config.ConfigError) as caught:
        config.check(changed(where, value))
    assert str(caught.value).startswith(sentence) and "\n" not in str(caught.value)


def test_check(tmp_path, capsys):
    path = tmp_path / "config.json"
    assert cli.main(["--config", str(path), "check"]) == 2
    assert capsys.readouterr().err == f"openclaw-owner: {path} cannot be read: No such file or directory.\n"
    path.write_text(json.dumps(GOOD))
    assert cli.main(["--config", str(path), "check"]) == 0 and config.load(path) == config.check(GOOD)


def test_contents_are_merged_at_all_depths_and_are_not_changed():
    before = copy.deepcopy(POLL["content"])
    both = files.merged([POLL["content"], OTHER["content"]])
    assert both == {"telegram": {"accounts": {"poll": {"enabled": True}, "other": {"enabled": True}}}} and POLL["content"] == before
    assert files.within(POLL["content"], both) and files.within(OTHER["content"], both) and not files.within(both, POLL["content"])
    assert not files.within(POLL["content"], {}) and not files.within(POLL["content"], {"telegram": True})
    assert files.merged([]) == {} and files.text({}) == "{}\n"


def test_a_file_is_replaced_at_once_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.json"
    assert files.write(str(path), "{}\n") and path.read_text() == "{}\n" and path.stat().st_mode & 0o777 == 0o640
    assert not files.write(str(path), "x", lambda: False) and path.read_text() == "{}\n"
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        files.write(str(path), "x")
    assert os.listdir(tmp_path / "new") == ["a.json"]


@pytest.mark.parametrize(("content", "found"), [(None, ""), ("{", "?"), ("[1]", "[1]")])
def test_a_file_that_is_no_object_has_nothing(tmp_path, content, found):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_text(content)
    assert files.read(str(path)) == (found, {})
