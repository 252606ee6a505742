"""kernel_settings against a directory that looks like /proc/sys."""

import os

import pytest

from ansible_collections.openclaw.ha.plugins.modules import kernel_settings

WANTED = {"vm.overcommit_memory": 1, "net.core.somaxconn": 4096}


@pytest.fixture
def host(tmp_path, run_module):
    for path, value in (("vm/overcommit_memory", "0"), ("net/core/somaxconn", "4096")):
        (tmp_path / "sys" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / path).write_text(value + "\n")

    def ensure(check=False, settings=None):
        file, root = tmp_path / "sysctl.d" / "openclaw.conf", tmp_path / "sys"
        return run_module(kernel_settings, check=check, settings=settings or WANTED, file=str(file), root=str(root))

    ensure.live = tmp_path / "sys/vm/overcommit_memory"
    ensure.file = tmp_path / "sysctl.d/openclaw.conf"
    return ensure


def test_what_differs_goes_live_and_is_kept_for_the_next_boot(host):
    result = host()
    assert result["changed"] and result["diff"] == {"before": "vm.overcommit_memory = 0\n", "after": "vm.overcommit_memory = 1\n"}
    assert host.live.read_text() == "1\n"
    assert host.file.read_text() == "net.core.somaxconn = 4096\nvm.overcommit_memory = 1\n"
    assert host()["changed"] is False


def test_a_lost_file_is_written_again(host):
    host()
    host.file.unlink()
    assert host()["changed"] is True and host.file.exists()


def test_a_dry_run_changes_nothing(host):
    assert host(check=True)["changed"] is True
    assert host.live.read_text() == "0\n" and not host.file.exists()


def test_what_the_host_keeps_for_itself_is_named_and_left_alone(host, monkeypatch):
    # Root may write anywhere but to a read-only file system, which a test cannot mount.
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("overcommit_memory"))
    result = host()
    assert result["unchangeable"] == ["vm.overcommit_memory"] and host.live.read_text() == "0\n"
    assert "overcommit_memory" not in host.file.read_text()
    assert host()["changed"] is False


@pytest.mark.parametrize("settings", [{"vm.overcommit_memory": "yes"}, {"../../etc/x": 1}])
def test_bad_input_is_refused(host, settings):
    assert host(settings=settings)["failed"]
