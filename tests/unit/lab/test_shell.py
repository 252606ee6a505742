"""Waiting in the lab."""

import pytest

from lab.shell import LabError, run, wait_for


def test_waiting_says_at_last_what_stood_in_the_way():
    with pytest.raises(LabError, match=r"the moon: not seen within 0 s \(last: .*ended with 7:\nPermission denied"):
        wait_for("the moon", lambda: run("sh", "-c", "echo Permission denied >&2; exit 7"), 0)


def test_a_command_that_fails_at_first_is_waited_for():
    answers = iter([LabError("not yet"), None, "there"])

    def probe():
        answer = next(answers)
        if isinstance(answer, LabError):
            raise answer
        return answer

    assert wait_for("it", probe, 5, 0.01) == "there"
