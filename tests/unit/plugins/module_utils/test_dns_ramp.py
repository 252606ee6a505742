"""The planner of a ramp: examples, and what holds for every course that it may take."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from ansible_collections.openclaw.ha.plugins.module_utils import dns_ramp, dns_ramp_page
from ansible_collections.openclaw.ha.plugins.module_utils.dns_weights import share

PLAN = {"to": "dc2", "start": 10, "step": 20, "window": 1800, "interval": 30, "slo": 99.9, "burn_rate": 6, "minimum": 100}
BALANCERS = [{"host": "lb1", "engine": "haproxy", "vip": None}]
METRICS = """
haproxy_frontend_http_requests_total{proxy="openclaw"} 999
haproxy_backend_http_requests_total{proxy="gateways"} 120
haproxy_backend_http_requests_total{proxy="other"} 5
haproxy_backend_http_requests_total{proxy="datacenters"} 7
haproxy_backend_http_responses_total{proxy="datacenters",code="5xx"} 1
haproxy_backend_http_responses_total{proxy="gateways",code="2xx"} 100
haproxy_backend_http_responses_total{proxy="gateways",code="5xx"} 3
haproxy_backend_client_aborts_total{proxy="gateways"} 4
haproxy_backend_server_aborts_total{proxy="gateways"} 2
"""


def begun(weights=None, ramp_from=None, balancers=None, ttl=30, **changed):
    return dns_ramp.begin({**PLAN, **changed}, BALANCERS if balancers is None else balancers, weights or {"dc1": 100, "dc2": 0}, ramp_from, ttl)


def run(state, course, every=30):
    """Looks until the ramp has ended; ``course(seconds, percent)`` is (requests, failures) since the last look, or None."""
    at, total, steps = 1000.0, [0, 0], []
    for number in range(dns_ramp.most_looks(state) + 1):
        if state["action"] in ("done", "back"):
            return state, steps
        if state["action"] == "set":
            steps.append((at, state["percent"]))
        given_now = course(at - 1000, state["percent"])
        if given_now and number:
            total = [total[0] + given_now[0], total[1] + given_now[1]]
        state = dns_ramp.look(state, {"lb1": {"requests": total[0], "failures": total[1]} if given_now else None}, at)
        at += every
    raise AssertionError("it did not end")


def test_a_good_course_goes_through_all_steps_with_a_whole_window_each():
    state, steps = run(begun(), lambda _at, _percent: (50, 0))
    assert [percent for _at, percent in steps] == [10, 30, 50, 70, 90, 100]
    assert all(later - earlier >= 1800 for (earlier, _percent), (later, _next) in zip(steps, steps[1:]))
    assert (state["action"], state["weights"]) == ("done", {"dc1": 0, "dc2": 100})


def test_a_burn_goes_back_to_where_it_came_from():
    state, _steps = run(begun({"dc1": 70, "dc2": 0, "dc3": 30}), lambda at, _percent: (50, 10 if at > 4000 else 0))
    assert (state["action"], state["weights"]) == ("back", {"dc1": 70, "dc2": 0, "dc3": 30})
    assert "times as fast" in state["why"]


def test_one_failed_request_of_three_is_no_burn():
    state = begun()
    state = dns_ramp.look(state, {"lb1": {"requests": 0, "failures": 0}}, 0)
    state = dns_ramp.look(state, {"lb1": {"requests": 3, "failures": 1}}, 30)
    assert state["action"] == "watch"


def test_one_failed_request_is_no_burn_whatever_the_number():
    state = begun(minimum=1)
    state = dns_ramp.look(state, {"lb1": {"requests": 0, "failures": 0}}, 0)
    state = dns_ramp.look(state, {"lb1": {"requests": 10, "failures": 1}}, 30)
    assert state["action"] == "watch"
    assert dns_ramp.look(state, {"lb1": {"requests": 20, "failures": 2}}, 60)["action"] == "back"


def test_a_burn_that_has_ended_does_not_go_back_but_is_waited_for():
    """The long window burns, the short one does not: no step either, until it has left the long window."""
    state, steps = run(begun(), lambda at, _percent: (50, 0))
    course = {}

    def bad(at, percent):
        course.setdefault(percent, at)
        # Below the minimum while it lasts, so that it is seen only afterwards.
        if percent == 10 and at - course[10] <= 60:
            return (40, 20)
        return (0, 0) if percent == 10 and at - course[10] <= 300 else (50, 0)

    state, steps = run(begun(), bad)
    assert state["action"] == "done"
    assert steps[1][0] - steps[0][0] > 1830


def test_too_few_requests_are_waited_for_and_then_it_goes_back():
    state, steps = run(begun(), lambda _at, _percent: (1, 0))
    assert state["action"] == "back" and "too few to judge" in state["why"]
    assert [percent for _at, percent in steps] == [10]


def test_balancers_that_no_longer_answer_end_it():
    state, _steps = run(begun(), lambda at, _percent: None if at > 2000 else (50, 0))
    assert state["action"] == "back" and "lb1 gave no counts" in state["why"]


def test_one_look_without_an_answer_is_forgiven():
    state, _steps = run(begun(), lambda at, _percent: None if at == 900 else (50, 0))
    assert state["action"] == "done"


def test_behind_a_virtual_address_one_balancer_is_enough():
    two = [{"host": "lb1", "engine": "haproxy", "vip": "192.0.2.1"}, {"host": "lb2", "engine": "haproxy", "vip": "192.0.2.1"}]
    state = begun(balancers=two)
    for at in (0, 30, 60):
        state = dns_ramp.look(state, {"lb1": {"requests": at, "failures": 0}, "lb2": None}, at)
    assert state["action"] == "watch"
    state = begun(balancers=[{**node, "vip": None} for node in two])
    for at in (0, 30):
        state = dns_ramp.look(state, {"lb1": {"requests": at, "failures": 0}, "lb2": None}, at)
    assert state["action"] == "back" and "lb2 gave no counts" in state["why"]


def test_a_balancer_that_was_started_anew_counts_from_nothing():
    state = begun()
    for at, requests, failures in ((0, 1000, 50), (30, 1100, 50), (60, 7, 1)):
        state = dns_ramp.look(state, {"lb1": {"requests": requests, "failures": failures}}, at)
    assert [(one["requests"], one["failures"]) for one in state["looks"]] == [(0, 0), (100, 0), (7, 1)]


def test_an_interrupted_ramp_goes_on_and_still_knows_the_way_back():
    state = begun({"dc1": 50, "dc2": 50}, {"dc1": 100, "dc2": 0})
    assert (state["action"], state["percent"], state["before"]) == ("watch", 50, {"dc1": 100, "dc2": 0})
    done, steps = run(state, lambda _at, _percent: (50, 0))
    assert [percent for _at, percent in steps] == [70, 90, 100] and done["action"] == "done"
    back, _steps = run(state, lambda _at, _percent: (50, 25))
    assert back["weights"] == {"dc1": 100, "dc2": 0}


def test_one_that_was_interrupted_at_the_end_watches_its_last_window():
    state = begun({"dc1": 0, "dc2": 100}, {"dc1": 100, "dc2": 0})
    assert state["action"] == "watch"
    assert run(state, lambda _at, _percent: (50, 25))[0]["weights"] == {"dc1": 100, "dc2": 0}


def test_a_ramp_the_other_way_begins_where_the_interrupted_one_was():
    state = begun({"dc1": 50, "dc2": 50}, {"dc1": 100, "dc2": 0}, to="dc1")
    assert state["before"] == {"dc1": 50, "dc2": 50}


def test_nothing_is_to_be_done_where_all_clients_are_already():
    assert begun({"dc1": 0, "dc2": 100})["action"] == "done"


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"to": "dc9"}, "dns_ramp_to: found 'dc9'"),
        ({"start": 0}, "dns_ramp_start"),
        ({"step": 101}, "dns_ramp_step"),
        ({"slo": 100}, "dns_ramp_slo"),
        ({"burn_rate": 0}, "dns_ramp_burn_rate"),
        ({"minimum": 0}, "dns_ramp_minimum_requests"),
        ({"window": 59}, "dns_ramp_window: found 59"),
        ({"interval": 901}, "dns_ramp_window"),
        ({"interval": 0}, "dns_ramp_interval"),
        ({"balancers": []}, "openclaw_balancers: found none"),
        ({"balancers": [{"host": "lb1", "engine": "nginx"}]}, "nginx does not count failures"),
    ],
)
def test_settings_with_which_nothing_can_be_judged_are_refused(changed, words):
    assert words in begun(**changed)["problem"]


def test_haproxys_metrics():
    assert dns_ramp.counts(METRICS) == {"requests": 127, "failures": 10}
    assert dns_ramp.counts(METRICS, client_aborts=False) == {"requests": 127, "failures": 6}
    assert dns_ramp.counts("nginx_up 1\n") is None and dns_ramp.counts(None) is None


PLANS = some.fixed_dictionaries(
    {
        "start": some.integers(1, 100),
        "step": some.integers(1, 100),
        "window": some.integers(60, 600),
        "interval": some.integers(5, 30),
        "minimum": some.integers(1, 200),
        "burn_rate": some.floats(0.5, 20),
        "slo": some.sampled_from([90.0, 99.0, 99.9, 99.99]),
    }
)
LOOK = some.one_of(some.none(), some.tuples(some.integers(0, 300), some.integers(0, 20)))
GOOD = some.tuples(some.integers(50, 300), some.just(0))


@settings(max_examples=150, deadline=None)
@given(plan=PLANS, first=some.integers(0, 100), course=some.lists(some.one_of(LOOK, GOOD, GOOD, GOOD), min_size=1, max_size=60), late=some.integers(0, 20))
def test_no_course_breaks_the_rules(plan, first, course, late):
    """Never past a window, never more than a step, always an end, and back whenever the budget burns or nobody counts."""
    before = {"dc1": 100 - first, "dc2": first}
    state = begun(before, **plan)
    assert not state["problem"]
    at, total, since, percent, silent, counted, window = 0.0, [0, 0], None, first, 0, False, []
    for number in range(dns_ramp.most_looks(state) + 1):
        if state["action"] == "set":
            assert share(state["weights"], "dc2") == state["percent"] > percent
            assert state["percent"] - percent <= (plan["start"] if percent < plan["start"] else plan["step"])
            if since is not None:
                assert at - plan["interval"] - late >= since + plan["window"] - 1e-6
            percent, since, window = state["percent"], None, []
        if state["action"] in ("done", "back"):
            break
        now = course[number % len(course)]
        if now and counted:
            total = [total[0] + now[0], total[1] + now[1]]
            window.append((at, *now))
        # What the first answer says happened before the ramp.
        counted = counted or bool(now)
        silent = 0 if now else silent + 1
        since = at if since is None else since
        state = dns_ramp.look(state, {"lb1": {"requests": total[0], "failures": total[1]} if now else None}, at)

        def burn(seconds):
            kept = [one for one in window if one[0] > at - seconds]
            asked, failed = sum(one[1] for one in kept), sum(one[2] for one in kept)
            return asked, failed, failed / max(asked, failed, 1) / (1 - plan["slo"] / 100)

        asked, failed, rate = burn(plan["window"])
        if silent >= 2 or (asked >= plan["minimum"] and failed >= 2 and rate > plan["burn_rate"] and burn(plan["window"] / 12)[2] > plan["burn_rate"]):
            assert state["action"] == "back"
        at += plan["interval"] + late
    else:
        raise AssertionError("it did not end")
    assert state["weights"] == (before if state["action"] == "back" else {"dc1": 0, "dc2": 100})


def test_the_page_shows_the_outcome_and_escapes_what_it_is_given():
    state, _steps = run(begun(), lambda at, _percent: (50, 10 if at > 4000 else 0))
    report = dns_ramp.summary(state, "burns", True, 0)
    assert (report["outcome"], report["why"], report["weights"]) == ("went back", "burns", "dc1=100 dc2=0")
    assert report["looks"][0]["at"] == 0
    text = dns_ramp_page.page({**report, "why": "<b>"})
    assert "&lt;b&gt;" in text and "<svg" in text and "burn rate" in text
    assert "src=" not in text and "http" not in text
    assert dns_ramp.summary(state, "no server", False, 0)["outcome"] == "failed"
    assert dns_ramp_page.page(dns_ramp.summary(begun(), "no server", False, 0))
