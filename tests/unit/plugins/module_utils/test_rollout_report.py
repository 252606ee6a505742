"""The report of a rolling change, from events that are made up."""

import xml.etree.ElementTree

from ansible_collections.openclaw.ha.plugins.module_utils.rollout_report import collect, page

HOSTS = [
    {
        "events": [
            ["a-1", "look", 998.0],
            ["a-1", "drain", 1000.0],
            ["a-1", "restart", 1004.0],
            ["a-1", "ready", 1016.0],
            ["a-1", "done", 1020.0],
            ["a-2", "look", 1020.0],
            ["a-1", "look", 1021.0],
        ],
        "floors": {"a-1": {"drain": 3.0, "restart": 2.0, "start": 5.5, "gate": 0.5, "soak": 3.5}},
        # Some of them at the same moment, from replicas that are changed side by side.
        "counts": [[1004.0, 100, 0], [1004.01, 101, 0], [1018.0, 380, 0], [1018.04, 381, 0]],
        "failure": "",
    },
    {
        "events": [["b-1", "drain", 1021.0], ["b-1", "restart", 1022.0], ["b-1", "failed", 1082.0], ["b-1", "back", 1095.0]],
        "floors": {"b-1": {"drain": 1.0}},
        "counts": [[1022.0, 460, 1], [1093.0, 40, 0], [1094.0, 60, 2]],
        "failure": "b-1 did not take <2026.9.91>.\n\nIt is back.",
    },
]


def test_phases_and_traffic():
    report = collect(HOSTS, "2026.9.91")
    assert (report["began"], report["ended"], report["seconds"]) == ("1970-01-01 00:16:38+00:00", "1970-01-01 00:18:15+00:00", 97.0)
    first, second = report["replicas"]
    assert [(one["phase"], one["at"], one["seconds"]) for one in first["phases"]] == [
        ("look", 0, 2),
        ("drain", 2, 4),
        ("restart", 6, 12),
        ("ready", 18, 4),
    ]
    assert (first["outcome"], first["total_seconds"]) == ("done", 22)
    # 22 s, of which it was watched for 3.5, to 11 s.
    assert (first["floor_seconds"], first["ratio"]) == (11, 1.68)
    assert (second["floor_seconds"], second["ratio"]) == (None, None)
    assert [one["phase"] for one in second["phases"]] == ["drain", "restart", "failed"] and second["outcome"] == "back"
    # A reload in between is left out: its counts begin anew.
    assert [(one["at"], one["requests"], one["errors"]) for one in report["traffic"]] == [(6, 280, 0), (20, 80, 1), (95, 20, 2)]
    assert report["failures"] == ["b-1 did not take <2026.9.91>. It is back."]


def test_the_page_is_whole_and_says_it_all():
    text = page(collect(HOSTS, "2026.9.91"))
    svg = xml.etree.ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6])
    told = [node.text for node in svg.iter() if node.tag == "title"]
    assert "a-1 restarted, not yet proven: 12 s" in told and "20 requests in 1 s, 2 failed at a replica" in told
    assert "b-1 did not take &lt;2026.9.91&gt;. It is back." in text and "<2026.9.91>" not in text
    assert "http" not in text, "nothing is loaded from elsewhere"


def test_nothing_to_do():
    report = collect([{"events": [], "counts": [], "failure": ""}], "2026.9.6")
    assert report["replicas"] == [] and "Nothing had to be changed." in page(report)
