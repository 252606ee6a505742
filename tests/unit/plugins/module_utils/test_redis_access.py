"""Users of Redis and Sentinel: passwords, definitions, and what must change."""

import hashlib

import pytest
from hypothesis import given as examples
from hypothesis import strategies

from ansible_collections.openclaw.ha.plugins.module_utils import redis_access as access

SECRET = "correct-horse-battery"
words = strategies.text("abcdefghij0123456789", min_size=1, max_size=12)


def digest(password):
    return hashlib.sha256(password.encode()).hexdigest()


def test_each_user_has_a_password_of_its_own_that_does_not_hold_the_secret():
    found = access.passwords(SECRET, "redis") | {f"sentinel {user}": value for user, value in access.passwords(SECRET, "sentinel").items()}
    assert len(set(found.values())) == len(found)
    assert all(SECRET not in value and len(value) == 64 for value in found.values())
    assert access.passwords(SECRET, "redis") == access.passwords(SECRET, "redis") != access.passwords(SECRET + "x", "redis")


def test_the_derivation_stays_what_it_is():
    # Another result would lock every running cluster out at its next run.
    assert access.passwords(SECRET, "redis")["app"] == "94110b3e9ad0e36bf0747d94c0a34e0c291f65a33f57ca70040433562aeb738c"


def test_a_given_password_wins():
    found = access.passwords(SECRET, "redis", {"app": "given-by-hand"})
    assert found["app"] == "given-by-hand" and found["admin"] == access.passwords(SECRET, "redis")["admin"]


@pytest.mark.parametrize("secret, given, said", [("", {}, "no secret"), (None, {}, "no secret"), (SECRET, {"apps": "x"}, "no user apps")])
def test_bad_input_is_refused(secret, given, said):
    with pytest.raises(ValueError, match=said):
        access.passwords(secret, "redis", given)


@pytest.mark.parametrize("kind", ["redis", "sentinel"])
def test_what_is_written_is_read_back(kind):
    wanted = access.target({}, kind, access.passwords(SECRET, kind), keep_older=False)
    content = access.text(wanted)
    assert access.parse(content.splitlines()) == wanted
    assert SECRET not in content and not any(password in content for password in access.passwords(SECRET, kind).values())
    assert content.splitlines()[[*sorted(wanted)].index("default")].startswith("user default off resetchannels")
    assert not wanted["default"].hashes and not wanted["default"].nopass


def test_nobody_but_the_admin_gets_a_category():
    for kind, users in access.RULES.items():
        for name, rules in users.items():
            if name != "admin":
                assert [word for word in rules.split() if "@" in word] == ["-@all"], f"{kind} {name}"


def test_the_sentinels_of_a_datacenter_have_no_way_into_the_redis_of_another():
    main, west, alone = (access.passwords(SECRET, "redis", datacenter=name) for name in ("main", "west", None))
    assert len({main["sentinel"], west["sentinel"], alone["sentinel"]}) == 3
    assert all(main[user] == west[user] == alone[user] for user in main if user != "sentinel")
    assert access.passwords(SECRET, "sentinel", datacenter="west") == access.passwords(SECRET, "sentinel")


def test_who_reads_keys_reads_only_its_own():
    assert [name for name, rules in access.RULES["redis"].items() if "~" in rules] == ["admin", "app", "ingress", "owner", "datacenter"]
    assert [word for word in access.RULES["redis"]["owner"].split() if "~" in word] == ["~oc:owner:*", "~oc:events"]
    # What conversations hold is no business of the ingress: of claims it sees whether they are there.
    assert [word for word in access.RULES["redis"]["ingress"].split() if "~" in word] == ["~oc:ingress:*", "~oc:events", "%R~oc:dedupe:*", "%R~oc:inbound:*"]
    assert access.RULES["redis"]["datacenter"].split()[0] == "~oc:datacenter"
    assert "~oc:*" in access.RULES["redis"]["app"].split()


def test_a_server_may_say_it_in_another_way():
    one = access.parse(["user a on sanitize-payload #aa resetchannels &x -@all +ping +info"])
    assert one == access.parse(["user a on #aa &x +info +ping"]) != {}


CATEGORIES = {"read": ["get", "config|get"], "admin": ["config", "config|get", "config|set"], "fast": ["get", "ping"]}


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("+ping +get", "+@fast", True),
        ("+ping +get +config|get", "+@all -config|set", True),
        ("+config", "+config|get +config|set", True),
        ("+@admin -config", "", True),
        ("+@all", "+@fast +@admin", True),
        ("+ping", "+@fast", False),
        ("~a +ping", "+ping", False),
        ("+later", "+later", True),
    ],
)
def test_the_same_commands_in_other_words(one, other, same):
    first, second = (access.understand(access.parse([f"user a on {rules}"]), CATEGORIES) for rules in (one, other))
    assert (first == second) is same


def test_order_counts_where_something_is_taken_away():
    assert access.parse(["user a on +@all -get"]) != access.parse(["user a on -get +@all"])


def test_a_rotation_never_leaves_a_moment_without_a_good_password():
    old, new = access.passwords("old-secret", "redis"), access.passwords("new-secret", "redis")
    before = access.target({}, "redis", old, keep_older=False)
    between = access.target(before, "redis", new, keep_older=True)
    after = access.target(between, "redis", new, keep_older=False)
    for user in old:
        assert between[user].hashes == {digest(old[user]), digest(new[user])}
        assert after[user].hashes == {digest(new[user])}
    assert access.changes(before, between)["app"] == ["1 password added"]
    assert access.changes(between, after)["app"] == ["1 password removed"]
    assert access.changes(after, access.target(after, "redis", new, keep_older=False)) == {}


def test_foreign_users_stay_until_the_end_and_the_default_user_never_does():
    present = access.parse(["user default on nopass ~* &* +@all", "user stranger on #aa +@all"])
    kept = access.target(present, "redis", access.passwords(SECRET, "redis"), keep_older=True)
    assert kept["stranger"] == present["stranger"] and not (kept["default"].on or kept["default"].nopass or kept["default"].hashes)
    assert access.changes(kept, access.target(kept, "redis", access.passwords(SECRET, "redis"), keep_older=False)) == {"stranger": ["removed"]}


def test_changes_are_said_without_secrets():
    given = access.passwords(SECRET, "redis")
    present = access.parse(["user app on nopass ~* +@all"])
    said = access.changes(present, access.target(present, "redis", given, keep_older=False))
    assert said["app"][:2] == ["needs a password", "1 password added"]
    assert "now has ~oc:*" in said["app"] and "no longer has ~*" in said["app"] and said["admin"][0] == "added"
    assert not any(password in str(said) or digest(password) in str(said) for password in given.values())


@examples(strategies.lists(strategies.tuples(strategies.sampled_from("~&+-"), words), max_size=6), strategies.booleans())
def test_every_definition_survives_the_file(rules, on):
    line = f"user someone {'on' if on else 'off'} " + " ".join(sign + word for sign, word in rules)
    users = access.parse([line])
    assert access.parse(access.text(users).splitlines()) == users
