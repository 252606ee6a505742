"""Replicas with a systemctl on disk that really starts and stops a process."""

from __future__ import annotations

import getpass
import json
import os
import signal
import stat

import pytest

from ansible_collections.openclaw.ha.plugins.modules import gateway_replica

UNIT = "openclaw-gateway@1.service"

# Starts the process with the environment of replica.env, as the unit does.
SYSTEMCTL = """
import json, os, pathlib, subprocess, sys
here = pathlib.Path(__file__).parent
state_file = here / "state.json"
state = {"UnitFileState": "disabled", "MainPID": 0, "ActiveState": "inactive"}
if state_file.exists():
    state = json.loads(state_file.read_text())
verb = sys.argv[1]
with open(here / "calls", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\\n")
if (here / "refuse").exists() and verb == (here / "refuse").read_text():
    sys.exit("Job for " + sys.argv[-1] + " failed.")
if verb in ("stop", "restart") and state["MainPID"]:
    os.kill(state["MainPID"], 15)
    state.update(MainPID=0, ActiveState="inactive")
if verb in ("start", "restart"):
    lines = (here.parent / "etc" / "1" / "replica.env").read_text().splitlines()
    environment = {line.split("=", 1)[0]: line.split("=", 1)[1].strip('"') for line in lines}
    process = subprocess.Popen(["/bin/sleep", "60"], env=environment, stdin=-3, stdout=-3, stderr=-3)
    state.update(MainPID=process.pid, ActiveState="active")
if verb in ("enable", "disable"):
    state["UnitFileState"] = verb + "d"
if verb == "show":
    print("LoadState=loaded\\nNeedDaemonReload=no")
    print("\\n".join(f"{key}={value}" for key, value in state.items()))
state_file.write_text(json.dumps(state))
"""

CHECK = """
import json, os, pathlib, sys
if sys.argv[1:3] == ["plugins", "install"]:
    here = pathlib.Path(__file__).parent
    state = pathlib.Path(os.environ["OPENCLAW_STATE_DIR"])
    told = {key: os.environ.get(key) for key in ("OPENCLAW_CONFIG_PATH", "OPENCLAW_CONFIG_READONLY", "npm_config_cache")}
    running = json.loads((here / "state.json").read_text())["MainPID"]
    (here / "installs").open("a").write(json.dumps({"words": sys.argv[3:], "running": running, **told}) + "\\n")
    if (here / "no-registry").exists():
        print("npm error ENOTFOUND registry", file=sys.stderr)
        sys.exit(1)
    name, version = sys.argv[3].removeprefix("npm:").rsplit("@", 1)
    place = state / "npm/projects" / name.replace("/", "-") / "node_modules" / name
    place.mkdir(parents=True, exist_ok=True)
    (place / "package.json").write_text(json.dumps({"name": name, "version": version}))
    sys.exit(0)
assert sys.argv[1:] == ["config", "validate", "--json"], sys.argv
path = pathlib.Path(os.environ["OPENCLAW_CONFIG_PATH"])
pathlib.Path(__file__).with_name("checked").write_text(str(path))
included = json.loads(path.read_text()).get("channels", {}).get("$include")
if included:
    assert pathlib.Path(included).parent == path.parent, included
    pathlib.Path(__file__).with_name("included").write_text(pathlib.Path(included).read_text())
if "nonsense" in json.loads(path.read_text()):
    print(json.dumps({"valid": False, "issues": [{"path": "<root>", "message": "Unrecognized key: nonsense"}]}))
    sys.exit(1)
print(json.dumps({"valid": True}))
"""

JOURNALCTL = """
import pathlib
journal = pathlib.Path(__file__).with_name("journal")
print(journal.read_text() if journal.exists() else "")
"""

RUNUSER = """
import os, sys
os.execvp(sys.argv[4], sys.argv[4:])
"""


@pytest.fixture
def host(program, tmp_path, monkeypatch):
    """A host with systemctl, runuser and a release's check; ``host.calls()`` are the verbs since the last look."""
    directory = program("systemctl", SYSTEMCTL).parent
    program("runuser", RUNUSER)
    program("check", CHECK)
    program("journalctl", JOURNALCTL)
    monkeypatch.setenv("PATH", f"{directory}:/usr/bin:/bin")
    (tmp_path / "etc").mkdir()
    (tmp_path / "var").mkdir()
    (tmp_path / "systemd").mkdir()
    (tmp_path / "inputs" / "node_modules").mkdir(parents=True)
    (tmp_path / "inputs" / "index.js").write_text("one")

    class Host:
        path = tmp_path
        bin = directory

        def calls(self):
            log = directory / "calls"
            words = [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []
            log.unlink(missing_ok=True)
            return [word for word in words if word != "show"]

        def state(self):
            return json.loads((directory / "state.json").read_text())

    yield Host()
    state = directory / "state.json"
    if state.exists() and json.loads(state.read_text())["MainPID"]:
        os.kill(json.loads(state.read_text())["MainPID"], signal.SIGKILL)


@pytest.fixture
def have(run_module, host):
    def run(check=False, **more):
        arguments = {
            "id": "node1-1",
            "unit": UNIT,
            "user": getpass.getuser(),
            "config_directory": str(host.path / "etc" / "1"),
            "state_directory": str(host.path / "var" / "1" / "2026.9.6" / "state"),
            "directories": [str(host.path / "var" / "1"), str(host.path / "var" / "1" / "2026.9.6")],
            "validate": [str(host.bin / "check")],
            "config": {"gateway": {"port": 18789}},
            "settings": {"retry": {"provider": {"maxRetries": 2}}},
            "environment": {"PATH": "/usr/bin:/bin"},
            "inputs": [str(host.path / "inputs")],
            "secrets": "KEY=hush-1\n",
            "unit_directory": str(host.path / "systemd"),
            **more,
        }
        return run_module(gateway_replica, check=check, **arguments)

    return run


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_a_fresh_replica(have, host):
    result = have()
    assert not result["failed"], result
    assert result["changed"] and result["actions"] == host.calls() == ["enable", "start"]
    etc, state = host.path / "etc" / "1", host.path / "var" / "1" / "2026.9.6" / "state"
    assert json.loads((etc / "openclaw.json").read_text()) == {"gateway": {"port": 18789}}
    assert (
        json.loads((state / "agents" / "main" / "agent" / "settings.json").read_text())["retry"]["provider"][
            "maxRetries"
        ]
        == 2
    )
    assert (mode(etc), mode(etc / "openclaw.json"), mode(etc / "replica.env")) == (0o750, 0o640, 0o640)
    assert (mode(state), mode(state / "agents" / "main" / "agent" / "settings.json")) == (0o700, 0o600)
    assert host.state()["ActiveState"] == "active"


def test_a_second_time_nothing_happens(have, host):
    have()
    host.calls()
    result = have()
    assert not result["changed"] and result["files"] == [] and host.calls() == []


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"gateway": {"port": 18790}}},
        {"environment": {"PATH": "/usr/bin:/bin", "OPENCLAW_RELEASE": "/opt/other"}},
    ],
)
def test_what_the_process_reads_at_its_start_restarts_it(have, host, change):
    have()
    before = host.state()["MainPID"]
    result = have(**change)
    assert result["actions"] == ["restart"] and host.state()["MainPID"] != before
    assert not have(**change)["changed"]


@pytest.mark.parametrize("name", ["inputs/index.js", "inputs/node_modules/.lock-sha256", "inputs/new.js"])
def test_changed_inputs_restart_it(have, host, name):
    have()
    (host.path / name).write_text("two")
    assert have()["actions"] == ["restart"] and not have()["changed"]


def test_changed_secrets_restart_it_and_are_not_shown(have, host):
    have()
    dry = have(check=True, secrets="KEY=hush-2\n")
    result = have(secrets="KEY=hush-2\n")
    assert dry["actions"] == result["actions"] == ["restart"] and not have(secrets="KEY=hush-2\n")["changed"]
    kept = host.path / "etc" / "1" / "secrets.env"
    assert kept.read_text() == "KEY=hush-2\n" and mode(kept) == 0o600
    assert str(kept) in result["files"] and "hush" not in json.dumps([dry, result])


def test_dependencies_count_by_their_checksum_only(have, host):
    have()
    (host.path / "inputs" / "node_modules" / "dep.js").write_text("x")
    assert not have()["changed"]


def test_settings_are_read_anew_for_each_turn(have, host):
    have()
    host.calls()
    result = have(settings={"retry": {"provider": {"maxRetries": 0}}})
    assert result["changed"] and result["live"] and result["actions"] == [] and host.calls() == []


class TestWhatOpenClawTakesOverLive:
    CHANGED = {"gateway": {"port": 18789}, "tools": {"deny": ["browser"]}}

    def test_nothing_is_restarted(self, have, host):
        have()
        host.calls()
        assert have(check=True, config=self.CHANGED)["live"]
        (host.bin / "journal").write_text("[reload] config hot reload applied (tools.deny)")
        result = have(config=self.CHANGED)
        assert result["changed"] and result["live"] and result["actions"] == [] and host.calls() == []
        assert not have(config=self.CHANGED)["live"]

    @pytest.mark.parametrize(
        "said, reason",
        [
            ("", "it has said nothing of it for 0.1 s"),
            ("[reload] config reload skipped (invalid config): x", "[reload] config reload skipped (invalid config): x"),
        ],
    )
    def test_what_is_not_taken_over_is_put_back(self, have, host, said, reason):
        have()
        file = host.path / "etc" / "1" / "openclaw.json"
        before, pid = file.read_text(), host.state()["MainPID"]
        (host.bin / "journal").write_text(said)
        result = have(config=self.CHANGED, reload_deadline=0.1)
        assert result["failed"] and result["msg"].endswith(f"its changed configuration: {reason}. It goes on with the one that it had.")
        assert file.read_text() == before and host.state()["MainPID"] == pid

    def test_with_anything_else_it_is_restarted(self, have, host):
        have()
        result = have(config={**self.CHANGED, "gateway": {"port": 18790}})
        assert result["actions"] == ["restart"] and not result["live"]


def test_a_restart_that_an_earlier_run_did_not_get_to(have, host):
    have()
    (host.bin / "refuse").write_text("restart")
    result = have(config={"gateway": {"port": 1}})
    assert result["failed"] and result["msg"] == f"Replica node1-1: systemctl restart -- {UNIT}: Job for {UNIT} failed."
    (host.bin / "refuse").unlink()
    result = have(config={"gateway": {"port": 1}})
    assert result["files"] == [] and result["actions"] == ["restart"]


def test_a_process_that_somebody_killed_is_started(have, host):
    have()
    state = host.state()
    os.kill(state["MainPID"], signal.SIGKILL)
    (host.bin / "state.json").write_text(json.dumps({**state, "MainPID": 0, "ActiveState": "failed"}))
    assert have()["actions"] == ["reset-failed", "start"]


def test_an_invalid_configuration_touches_nothing(have, host):
    have()
    before, pid = (host.path / "etc" / "1" / "openclaw.json").read_text(), host.state()["MainPID"]
    host.calls()
    result = have(config={"nonsense": 1}, settings={})
    assert (
        result["failed"]
        and "does not accept the configuration: <root>: Unrecognized key: nonsense. Nothing was" in result["msg"]
    )
    assert (host.path / "etc" / "1" / "openclaw.json").read_text() == before
    assert host.state()["MainPID"] == pid and host.calls() == []


def test_the_check_leaves_nothing_behind_and_runs_only_for_a_changed_configuration(have, host):
    have()
    checked = host.bin / "checked"
    assert not os.path.exists(os.path.dirname(checked.read_text()))
    checked.unlink()
    have()
    assert not checked.exists()


def test_its_unit_is_its_own(have, host):
    have(unit_content="[Service]\nMemoryMax=2G\n")
    unit = host.path / "systemd" / UNIT
    assert unit.read_text() == "[Service]\nMemoryMax=2G\n" and mode(unit) == 0o644
    assert not have(unit_content="[Service]\nMemoryMax=2G\n")["changed"]
    result = have(unit_content="[Service]\nMemoryMax=3G\n")
    assert result["actions"] == ["daemon-reload", "restart"] and "MemoryMax=3G" in unit.read_text()
    dry = have(check=True, state="absent")
    assert unit.exists()
    result = have(state="absent")
    assert dry["actions"] == result["actions"] == ["stop", "disable", "daemon-reload"] and not unit.exists()


class TestVersions:
    """Each has its state in a directory of its own."""

    @pytest.fixture
    def run(self, have, host):
        def version(number, check=False):
            home = host.path / "var" / "1"
            state = home / number / "state"
            environment = {"PATH": "/usr/bin:/bin", "OPENCLAW_STATE_DIR": str(state)}
            result = have(check=check, state_directory=str(state), directories=[str(home), str(home / number)], environment=environment)
            assert not result["failed"], result
            return result, home / number

        return version

    def test_a_newer_one_goes_on_with_a_copy(self, run, host):
        _result, old = run("2026.9.5")
        (old / "state" / "sessions").mkdir(mode=0o700)
        (old / "state" / "sessions" / "login.json").write_text("a login")
        (old / "state" / "sessions" / "login.json").chmod(0o600)
        (old / "state" / "link").symlink_to("sessions/login.json")
        host.calls()
        result, new = run("2026.9.6", check=True)
        assert str(new) in result["files"] and not new.exists() and host.calls() == []
        result, new = run("2026.9.6")
        assert host.calls() == ["stop", "start"] == ["stop", *result["actions"]]
        assert (new / "state" / "sessions" / "login.json").read_text() == "a login" and mode(new / "state" / "sessions" / "login.json") == 0o600
        assert (new / "state" / "link").is_symlink() and mode(new / "state" / "sessions") == 0o700
        assert (old / "state" / "sessions" / "login.json").exists()
        (new / "state" / "sessions" / "login.json").write_text("a new login")
        assert not run("2026.9.6")[0]["changed"]
        assert (new / "state" / "sessions" / "login.json").read_text() == "a new login"

    def test_an_older_one_goes_on_with_what_it_had_and_the_newer_one_then_with_that(self, run):
        _result, old = run("2026.9.5")
        (old / "state" / "note").write_text("before")
        _result, new = run("2026.9.6")
        (new / "state" / "note").write_text("migrated")
        run("2026.9.5")
        assert (old / "state" / "note").read_text() == "before"
        (old / "state" / "note").write_text("later")
        run("2026.9.6")
        assert (new / "state" / "note").read_text() == "later"

    def test_a_copy_that_was_cut_short_is_made_anew(self, run, host):
        _result, old = run("2026.9.5")
        (old / "state" / "note").write_text("whole")
        (host.path / "var" / "1" / "2026.9.6.partial").mkdir()
        _result, new = run("2026.9.6")
        assert (new / "state" / "note").read_text() == "whole" and not (host.path / "var" / "1" / "2026.9.6.partial").exists()


class TestCheckMode:
    def test_on_a_fresh_host(self, have, host):
        result = have(check=True, user="nobody-of-this-name", validate=["/nowhere/node"], inputs_changed=True)
        assert not result["failed"] and result["actions"] == ["enable", "start"]
        assert host.calls() == [] and list((host.path / "etc").iterdir()) == []
        assert any("openclaw.json" in each["after_header"] and "18789" in each["after"] for each in result["diff"])

    def test_what_earlier_tasks_would_change_counts(self, have, host):
        have()
        host.calls()
        assert have(check=True)["actions"] == []
        assert have(check=True, inputs_changed=True)["actions"] == ["restart"] and host.calls() == []

    def test_an_invalid_configuration_is_refused(self, have):
        have()
        assert have(check=True, config={"nonsense": 1})["failed"]


class TestAbsent:
    def test_stopped_disabled_and_without_configuration(self, have, host):
        have()
        host.calls()
        assert have(check=True, state="absent")["actions"] == ["stop", "disable"] and host.calls() == []
        result = have(state="absent")
        assert result["changed"] and host.calls() == ["stop", "disable"]
        assert not (host.path / "etc" / "1").exists() and (host.path / "var" / "1" / "2026.9.6" / "state").is_dir()
        assert not have(state="absent")["changed"]

    def test_one_that_does_not_stop_keeps_its_configuration(self, have, host):
        have()
        (host.bin / "refuse").write_text("stop")
        assert have(state="absent")["failed"] and (host.path / "etc" / "1" / "openclaw.json").exists()


def test_a_link_in_the_place_of_a_directory_is_refused(have, host):
    (host.path / "elsewhere").mkdir()
    (host.path / "var" / "1").symlink_to(host.path / "elsewhere")
    result = have()
    assert result["failed"] and "no link" in result["msg"] and list((host.path / "elsewhere").iterdir()) == []


def test_a_link_in_the_place_of_a_file_is_replaced(have, host):
    have()
    settings = host.path / "var" / "1" / "2026.9.6" / "state" / "agents" / "main" / "agent" / "settings.json"
    victim = host.path / "victim"
    victim.write_bytes(settings.read_bytes())
    settings.unlink()
    settings.symlink_to(victim)
    assert have(settings={"a": 1})["changed"]
    assert not settings.is_symlink() and "maxRetries" in victim.read_text()


def test_no_such_user(have):
    result = have(user="nobody-of-this-name")
    assert result["failed"] and "no user and group nobody-of-this-name" in result["msg"]


def test_present_needs_a_configuration(run_module, tmp_path):
    assert run_module(gateway_replica, id="x", unit=UNIT, config_directory=str(tmp_path))["failed"]


def test_what_others_write_is_checked_with_all_that_it_may_hold(have, host):
    elsewhere = str(host.path / "run" / "channels.json")
    config = {"gateway": {"port": 18789}, "channels": {"$include": elsewhere}}
    result = have(config=config, includes={elsewhere: {"telegram": {"accounts": {}}}})
    assert result["changed"] and json.loads((host.bin / "included").read_text()) == {"telegram": {"accounts": {}}}
    # What runs reads the real one, which is somebody else's.
    assert json.loads((host.path / "etc/1/openclaw.json").read_text()) == config and not (host.path / "run").exists()


class TestPlugins:
    """OpenClaw's own plugins that are packages of their own: OpenClaw installs them, into the state of a replica that stands still."""

    @pytest.fixture
    def with_plugins(self, have, host):
        def run(*names, version="2026.9.6", **more):
            state = host.path / "var" / "1" / "2026.9.6" / "state"
            environment = {"PATH": "/usr/bin:/bin", "OPENCLAW_STATE_DIR": str(state), "OPENCLAW_CONFIG_READONLY": "1", "PLUGINS": " ".join(names)}
            return have(plugins=list(names), plugins_version=version, environment=environment, **more)

        return run

    @staticmethod
    def installs(host):
        log = host.bin / "installs"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def test_they_are_installed_once_and_while_it_stands_still(self, with_plugins, host):
        with_plugins()
        running = host.state()["MainPID"]
        assert running and self.installs(host) == []
        result = with_plugins("@openclaw/whatsapp")
        assert result["changed"] and result["actions"] == ["start"]
        (one,) = self.installs(host)
        assert one["words"] == ["npm:@openclaw/whatsapp@2026.9.6", "--accept-capabilities", "--force"] and one["running"] == 0
        # It writes into the configuration that it is shown, and the replica's own is none of its.
        assert one["OPENCLAW_CONFIG_PATH"] != str(host.path / "etc/1/openclaw.json") and one["OPENCLAW_CONFIG_READONLY"] is None
        assert not with_plugins("@openclaw/whatsapp")["changed"] and len(self.installs(host)) == 1

    def test_another_version_is_installed(self, with_plugins, host):
        with_plugins("@openclaw/whatsapp")
        assert with_plugins("@openclaw/whatsapp", version="2026.9.7")["changed"] and len(self.installs(host)) == 2

    def test_a_dry_run_says_that_it_would_stop(self, with_plugins, host):
        with_plugins()
        running = host.state()["MainPID"]
        result = with_plugins("@openclaw/whatsapp", check=True)
        assert result["changed"] and "restart" in result["actions"] and any(path.endswith("npm/@openclaw/whatsapp") for path in result["files"])
        assert self.installs(host) == [] and host.state()["MainPID"] == running

    def test_what_cannot_be_installed_is_said(self, with_plugins, host):
        (host.bin / "no-registry").write_text("")
        result = with_plugins("@openclaw/whatsapp")
        assert result["failed"] and "did not install @openclaw/whatsapp@2026.9.6: it ended with status 1 and said 'npm error ENOTFOUND" in result["msg"]
        assert "It is stopped; the next run goes on." in result["msg"]
