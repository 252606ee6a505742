import pytest

from ansible_collections.openclaw.ha.plugins.module_utils.redis_restart import parse_version, reasons
from ansible_collections.openclaw.ha.plugins.module_utils.systemd import Units, parse_timestamp

SAME = {
    "running": ("7.0.15", "ae4d"),
    "installed": ("7.0.15", "ae4d"),
    "wanted": {"databases": 16, "maxmemory": "256mb"},
    "found": {"databases": "16", "maxmemory": "268435456"},
    "pinned": {"databases"},
    "started": 1000.0,
    "changed": {"/etc/unit": 999.0},
    "reload_needed": False,
}


def test_nothing_differs():
    assert reasons(**SAME) == []


@pytest.mark.parametrize(
    "change, words",
    [
        ({"installed": ("8.0.2", "ae4d")}, "Version 7.0.15 (build ae4d) runs, 8.0.2 (build ae4d) is installed."),
        ({"installed": ("7.0.15", "beef")}, "7.0.15 (build beef) is installed."),
        ({"found": {"databases": "32", "maxmemory": "268435456"}}, "Setting databases is '32', not 16, and is read only at the start."),
        ({"changed": {"/etc/unit": 1000.5}}, "Changed since it was started: /etc/unit."),
        ({"reload_needed": True}, "The unit was changed since systemd read it."),
    ],
)
def test_each_reason_is_one_sentence(change, words):
    (reason,) = reasons(**{**SAME, **change})
    assert words in reason


def test_what_can_be_set_live_is_no_reason():
    assert reasons(**{**SAME, "found": {"databases": "16", "maxmemory": "1"}}) == []


def test_versions():
    assert parse_version("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c971a948f0\n") == ("7.0.15", "ae4d7c971a948f0")
    with pytest.raises(ValueError, match="is not what redis-server --version prints"):
        parse_version("command not found")


def test_times_of_systemd():
    assert parse_timestamp("Fri 2026-11-20 20:13:12.123456 UTC") == 1795205592.123456
    assert parse_timestamp("") is None
    assert parse_timestamp("n/a") is None


def test_start_and_files_of_a_unit():
    text = "ExecMainStartTimestamp=Fri 2026-11-20 20:13:12.123456 UTC\nFragmentPath=/lib/a.service\nDropInPaths=/etc/b.conf /etc/c.conf\n"
    assert Units(lambda words: (0, text, "")).start_and_files("a") == (1795205592.123456, ["/lib/a.service", "/etc/b.conf", "/etc/c.conf"])
    assert Units(lambda words: (1, "", "no systemd")).start_and_files("a") == (None, [])
