import pytest

from ansible_collections.openclaw.ha.plugins.modules import preflight_host_info
from ansible_collections.openclaw.ha.plugins.modules.preflight_host_info import distribution, find_npm, memory, read

MEMINFO = "MemFree:  10 kB\nMemTotal:        8000000 kB\nMemAvailable:  1 kB\n"
DEBIAN = (
    'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nVERSION="12 (bookworm)"\nID=debian\nHOME_URL="x"\n'
)
UBUNTU = 'ID=ubuntu\nID_LIKE=debian\nVERSION_ID="24.04"\n'


@pytest.mark.parametrize(
    "limits, expected",
    [
        ([], 8192000000),
        (["max\n", ""], 8192000000),
        (["1073741824\n"], 1073741824),
        (["9223372036854771712"], 8192000000),
    ],
)
def test_memory_is_the_smaller_of_machine_and_container(limits, expected):
    assert memory(MEMINFO, limits) == expected


@pytest.mark.parametrize(
    "text, expected",
    [(DEBIAN, ("debian", "12")), (UBUNTU, ("ubuntu", "24")), ("ID=arch\n", ("arch", "")), ("", ("unknown", ""))],
)
def test_distribution(text, expected):
    assert distribution(text) == expected


def npm(directory):
    directory.mkdir(parents=True)
    (directory / "npm").touch(mode=0o755)
    return str(directory / "npm")


def test_npm_of_the_newest_node_below_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert find_npm("", str(tmp_path)) == ""
    npm(tmp_path / "node" / "24.9.0" / "bin")
    newest = npm(tmp_path / "node" / "24.19.0" / "bin")
    assert find_npm("", str(tmp_path)) == newest


def test_npm_on_the_path_comes_last(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    on_path = npm(tmp_path / "bin")
    assert find_npm("", str(tmp_path)) == on_path
    own = npm(tmp_path / "node" / "24.19.0" / "bin")
    assert find_npm("", str(tmp_path)) == own


def test_npm_of_a_given_node_or_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    npm(tmp_path / "bin")
    assert find_npm(str(tmp_path / "given"), str(tmp_path)) == ""
    given = npm(tmp_path / "given")
    assert find_npm(str(tmp_path / "given"), str(tmp_path)) == given


class Module:
    def __init__(self, status, output):
        self.answer = (status, output, "")

    def run_command(self, command):
        self.command = command
        return self.answer


@pytest.mark.parametrize(
    "status, output, expected",
    [(0, "v24.19.0\n", "24.19.0"), (1, "v24.19.0\n", ""), (0, "no such thing\n", ""), (0, "", "")],
)
def test_version_of_a_given_node(tmp_path, status, output, expected):
    (tmp_path / "node").touch(mode=0o755)
    module = Module(status, output)
    assert preflight_host_info.node_version(module, str(tmp_path)) == expected
    assert module.command == [str(tmp_path / "node"), "--version"]


def test_no_given_node_runs_nothing(tmp_path):
    assert preflight_host_info.node_version(None, "") == preflight_host_info.node_version(None, str(tmp_path)) == ""


def test_a_file_that_cannot_be_read_is_empty(tmp_path):
    assert read(str(tmp_path / "absent")) == ""


@pytest.mark.parametrize(
    "texts, speaks",
    [(["", ""], None), (['port "0"\ntls-port "6379"\n', ""], True), (["", "port 26379\n"], False), (["# tls-port\n"], False)],
)
def test_whether_a_host_speaks_tls(texts, speaks):
    assert preflight_host_info.speaks_tls(texts) is speaks


def test_addresses_by_interface():
    text = """[{"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "prefixlen": 8}]}, {"ifname": "eth1", "addr_info": []},
        {"ifname": "eth0", "addr_info": [{"local": "192.0.2.11", "prefixlen": 24}, {"local": "192.0.2.10", "prefixlen": 32}, {}]}]"""
    assert preflight_host_info.interfaces(text) == {"lo": ["127.0.0.1/8"], "eth0": ["192.0.2.11/24", "192.0.2.10/32"]}
    assert preflight_host_info.interfaces("") == {}
