"""gateway_jobs as data."""

import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import jobs

TELEGRAM = {"type": "telegram", "mode": "webhook", "secrets": {"bot_token": "1:t", "webhook_secret": "s"}, "allow_from": [42]}
POLLING = TELEGRAM | {"account": "poll", "mode": "polling", "secrets": {"bot_token": "2:t"}}
LISTED = [TELEGRAM, POLLING]
JOB = {"name": "report", "schedule": "0 8  * * 1-5", "message": "What is new?"}
DELIVERED = JOB | {"timezone": "Europe/Vienna", "deliver": {"account": "telegram/default", "to": 42}}


def test_what_the_plugin_is_told():
    assert jobs.config([JOB, DELIVERED | {"name": "other"}], LISTED) == [
        {"key": "report", "name": "report", "expr": "0 8 * * 1-5", "tz": "UTC", "message": "What is new?"},
        {
            "key": "other",
            "name": "other",
            "expr": "0 8 * * 1-5",
            "tz": "Europe/Vienna",
            "message": "What is new?",
            "delivery": {"mode": "announce", "channel": "telegram", "accountId": "default", "to": "42"},
        },
    ]
    assert jobs.config([], []) == []


@pytest.mark.parametrize(
    "entries, sentence",
    [
        ("daily", "gateway_jobs: found a str; allowed a list of jobs"),
        ([{"schedule": "* * * * *"}], "entry 1: found no name"),
        ([JOB | {"name": "Daily Report"}], "entry 1: found no name, or one with other characters"),
        ([JOB, JOB], "entry 2 (report): found the name of entry 1 again"),
        ([JOB | {"command": "rm"}], "found command; allowed name, schedule, timezone, message, deliver"),
        ([JOB | {"schedule": "hourly"}], "found schedule 'hourly'; allowed five fields"),
        ([JOB | {"schedule": "* * * * ;"}], "found schedule '* * * * ;'"),
        ([JOB | {"timezone": "the moon"}], "found timezone 'the moon'"),
        ([JOB | {"message": " "}], "found no message"),
        ([JOB | {"deliver": {"account": "telegram/default"}}], "found deliver without account and to"),
        ([JOB | {"deliver": {"account": "telegram/poll", "to": 42}}], "found deliver.account 'telegram/poll'; allowed an account that every replica"),
        ([JOB | {"deliver": {"account": "telegram/default", "to": ""}}], "found deliver.to that is no id"),
    ],
)
def test_what_makes_no_job_is_refused_in_one_sentence(entries, sentence):
    (found,) = jobs.problems(entries, LISTED)
    assert sentence in found and found.endswith(".")
    with pytest.raises(jobs.JobError):
        jobs.config(entries, LISTED)
