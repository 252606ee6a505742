"""The rules about append-only files, without files."""

import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import aof

GOOD = "file appendonly.aof.4.base.rdb seq 4 type b\nfile appendonly.aof.4.incr.aof seq 4 type i\n"


def command(*words):
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def seen(manifest=GOOD, **changes):
    sizes = {
        "appendonly.aof.4.base.rdb": 100,
        "appendonly.aof.4.incr.aof": 50,
        "appendonly.aof.manifest": len(manifest or ""),
    }
    return {
        "name": "appendonly.aof",
        "path": "/d",
        "manifest": manifest,
        "sizes": sizes,
        "digest": "d",
        "snapshot": False,
        "old_style": False,
        "error": None,
        **changes,
    }


def verdicts(findings):
    return [one["verdict"] for one in findings]


def test_a_manifest_as_redis_reads_it():
    text = "# a comment\n" + GOOD.replace("file ", "FILE ").replace(
        "seq 4 type i", 'type i seq 4 startoffset 7 more "a b"'
    )
    assert aof.parse_manifest(text) == aof.parse_manifest(GOOD)
    assert aof.parse_manifest('file "a b.1.base.rdb" seq 1 type b\n')[0]["file"] == "a b.1.base.rdb"


@pytest.mark.parametrize(
    "text",
    [
        "\n",
        "garbage\n",
        GOOD + "\n",
        GOOD[:-1],
        GOOD[:-5],
        GOOD.replace("seq 4 ", "seq x "),
        GOOD.replace("type b", "type z"),
        GOOD.replace("file append", "file /append"),
        GOOD.replace(" seq 4 type b", ""),
        'file "a seq 1 type b\n',
    ],
)
def test_a_manifest_that_redis_refuses(text):
    with pytest.raises(ValueError, match="manifest"):
        aof.parse_manifest(text)
    assert verdicts(aof.judge_manifest(text)[1]) == ["bad_manifest"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (GOOD.splitlines(True)[0], "no incremental"),
        (GOOD.splitlines(True)[1], "no base"),
        (GOOD + GOOD.splitlines(True)[0].replace("4", "5"), "2 base files"),
        (GOOD + "file appendonly.aof.3.incr.aof seq 3 type i\n", "do not rise"),
        (GOOD + "file appendonly.aof.4.incr.aof seq 5 type i\n", "twice"),
    ],
)
def test_rules_about_manifests(text, words):
    findings = aof.judge_manifest(text)[1]
    assert (
        findings
        and set(verdicts(findings)) == {"bad_manifest"}
        and words in " ".join(one["sentence"] for one in findings)
    )


def test_what_a_rewrite_leaves_behind_is_missed_by_nobody():
    history = GOOD + "file appendonly.aof.3.base.rdb seq 3 type h\nfile appendonly.aof.3.incr.aof seq 3 type h\n"
    assert aof.judge_files(seen(history)) == []


def test_the_record():
    record = aof.record_of(seen())
    assert record == {"base": "appendonly.aof.4.base.rdb", "seq": 4, "digest": "d"}
    assert aof.judge_files(seen(), record) == []
    assert aof.judge_files(seen(), {**record, "seq": 3, "digest": "other"}) == []
    assert verdicts(aof.judge_files(seen(), {**record, "digest": "other"})) == ["started_empty"]
    assert verdicts(aof.judge_files(seen(), {**record, "seq": 5})) == ["started_empty"]
    nothing = seen(None, sizes={})
    assert (
        aof.is_new(nothing, None)
        and not aof.is_new(nothing, record)
        and not aof.is_new({**nothing, "snapshot": True}, None)
    )
    assert aof.record_of(nothing) is None


def test_a_cut_anywhere_in_the_last_command_or_transaction_is_a_torn_end():
    whole = command(b"SELECT", b"0") + b"#TS:1\r\n"
    for last in (
        command(b"SET", b"key", b'{"a":"\\r\\n*3"}'),
        command(b"MULTI") + command(b"SET", b"a", b"1") + b"#TS:2\r\n" + command(b"DEL", b"b"),
    ):
        for cut in range(1, len(last)):
            assert aof.is_torn(last[:cut]), last[:cut]
    assert not aof.is_torn(b"") and not aof.is_torn(whole) and not aof.is_torn(command(b"SET", b"a", b"1"))


def test_a_damaged_length_is_no_torn_end():
    first, rest = command(b"SET", b"key", b"value"), command(b"SET", b"other", b"1") * 3
    for old, new in (
        (b"$3\r\nSET", b"$3000\r\nSET"),
        (b"$3\r\nkey", b"$99\r\nkey"),
        (b"$5\r\nvalue", b"$555\r\nvalue"),
        (b"*3", b"*30"),
        (b"*3", b"x3"),
        (b"$3\r\nkey", b"$x\r\nkey"),
    ):
        assert not aof.is_torn(first.replace(old, new, 1) + rest), (old, new)
    assert not aof.is_torn(b"\0" * 4096)
    assert not aof.is_torn(command(b"MULTI") + first.replace(b"$5", b"$999") + rest)


ANALYZED = "AOF analyzed: filename={}, size={}, ok_up_to={}, ok_up_to_line=9, diff={}\n"
BASE_FINE = (
    "[offset 0] Checking RDB file appendonly.aof.4.base.rdb\n[offset 9] AUX FIELD redis-ver = '7.0.15'\n"
    "[offset 100] \\o/ RDB looks OK! \\o/\n"
    + (ANALYZED.format("appendonly.aof.4.base.rdb", 100, 100, 0) + "BASE AOF appendonly.aof.4.base.rdb is valid\n")
)
ENTRIES = aof.parse_manifest(GOOD)


@pytest.mark.parametrize(
    ("output", "tail", "verdict", "file", "offset", "size"),
    [
        (
            BASE_FINE
            + "0x  2ca: Expected to read 9 bytes, got 4 bytes\n"
            + ANALYZED.format("appendonly.aof.4.incr.aof", 50, 40, 10),
            b"*1\r\n$4\r\nPI",
            "truncated_tail",
            "incr.aof",
            40,
            10,
        ),
        (
            BASE_FINE
            + "0x  2ca: Expected \\r\\n, got: 5858\n"
            + ANALYZED.format("appendonly.aof.4.incr.aof", 50, 40, 10),
            b"*1\r\n$4XXPI",
            "corrupt",
            "incr.aof",
            40,
            10,
        ),
        (
            "[offset 0] Checking RDB file appendonly.aof.4.base.rdb\n[offset 88] Unexpected EOF reading RDB file\n"
            "RDB preamble of AOF file is not sane, aborting.\n",
            None,
            "corrupt",
            "base.rdb",
            88,
            None,
        ),
        (
            BASE_FINE + "Cannot open file d/appendonly.aof.4.incr.aof: Permission denied, aborting...\n",
            None,
            "unreadable",
            "incr.aof",
            None,
            None,
        ),
        (
            BASE_FINE + "Cannot open file d/appendonly.aof.4.incr.aof: No such file or directory, aborting...\n",
            None,
            "missing_file",
            "incr.aof",
            None,
            None,
        ),
    ],
)
def test_what_redis_check_aof_says(output, tail, verdict, file, offset, size):
    found = aof.worst(aof.judge_check(aof.parse_check(output, 1), ENTRIES, tail))
    assert (found["verdict"], found["file"], found["offset"], found["bytes"]) == (
        verdict,
        f"appendonly.aof.4.{file}",
        offset,
        size,
    )


def test_output_that_nobody_knows_is_not_ok():
    assert verdicts(aof.judge_check(aof.parse_check("Segmentation fault", -11), ENTRIES, None)) == ["corrupt"]
    assert verdicts(aof.judge_check(aof.parse_check("", 1), ENTRIES, None)) == ["corrupt"]
    assert aof.judge_check(aof.parse_check("anything", 0), ENTRIES, None) == []


def test_the_running_server():
    fine = {"aof_enabled": 1, "aof_last_write_status": "ok", "aof_last_bgrewrite_status": "ok"}
    assert aof.judge_server(fine, "/d", "/d/") == []
    assert verdicts(aof.judge_server({**fine, "aof_enabled": 0})) == ["write_failed"]
    assert (
        aof.judge_server({**fine, "aof_enabled": 0, "master_sync_in_progress": 1}) == []
    )  # a replica stops writing while it copies
    assert (
        verdicts(aof.judge_server({**fine, "aof_last_bgrewrite_status": "err", "aof_last_write_status": "err"}))
        == ["write_failed"] * 2
    )
    assert verdicts(aof.judge_server(fine, "/d", "/elsewhere")) == ["started_empty"]


def test_the_gravest_finding_decides_and_every_verdict_has_advice():
    some = [aof.finding(verdict, verdict) for verdict in reversed(aof.ADVICE)]
    assert aof.worst(some)["verdict"] == "unreadable" and aof.worst([])["verdict"] == "ok"
    assert all(advice for verdict, advice in aof.ADVICE.items() if verdict != "ok")
    assert aof.summary(aof.worst([])) == "ok"
