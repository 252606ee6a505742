# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The users of Redis and Sentinel: what each may do, which passwords they have, and what must change. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac

#: Everything a user is allowed, for the servers of a kind. Nothing else is. ``sentinel`` is how Sentinels reach Redis, and each other.
RULES = {
    "redis": {
        "admin": "~* &* +@all",
        # What the plugin of the gateways sends, its Lua scripts included; see roles/gateway/files/shared_state/lib.
        "app": "~oc:* -@all +ping +info +eval +multi +exec +discard +wait +time +get +set +del +expire +pexpire +pttl"
        " +hget +hmget +hset +hsetnx +hincrby +lindex +linsert +llen +lrange +ltrim +rpush +xadd"
        " +zadd +zrange +zrem +zremrangebyrank +zremrangebyscore +zscore",
        # The programs of the roles ingress and owner.
        "ingress": "~oc:ingress:* ~oc:events %R~oc:dedupe:* %R~oc:inbound:* -@all +ping +eval +wait +time +get +set +incr +pexpire +expire +exists +xadd +xdel"
        " +xrange +zadd +zrem +zcard +zrange +zscore +rpush +lrange +lrem +hget +hset +hsetnx +hdel +hincrby",
        "owner": "~oc:owner:* ~oc:events -@all +ping +eval +wait +time +hmget +hset +xadd +expire",
        "replica": "-@all +ping +psync +replconf",
        "sentinel": "&__sentinel__:hello -@all +ping +info +role +multi +exec +slaveof +publish +subscribe"
        " +config|rewrite +client|setname +client|kill +script|kill",
        "exporter": "-@all +ping +info +type +dbsize +select +command +config|get +client|list +client|setname +slowlog|get"
        " +slowlog|len +latency|latest +latency|histogram +cluster|info +memory|stats",
        # The service that watches other datacenters, and follows one of them.
        "datacenter": "~oc:datacenter -@all +ping +info +get +replicaof +config|rewrite",
        "backup": "-@all +ping +info +bgsave +lastsave +bgrewriteaof +config|get +psync +replconf",
    },
    "sentinel": {
        "admin": "~* &* +@all",
        "client": "&* -@all +ping +info +role +command +subscribe +psubscribe +unsubscribe +client|setname +client|getname"
        " +client|id +sentinel|get-master-addr-by-name +sentinel|master +sentinel|masters +sentinel|replicas"
        " +sentinel|sentinels +sentinel|myid +sentinel|ckquorum",
        "sentinel": "&__sentinel__:hello -@all +ping +info +publish +subscribe +client|setname +sentinel|is-master-down-by-addr",
    },
}
#: The user that nobody can be. A Redis server loads its append-only files in its name, and leaves out every transaction (and every script
#: with two writes) that it is not allowed, without an error: so it is off, but may do everything.
DEFAULT = {"redis": "~* &* +@all", "sentinel": ""}
#: Words of a user's definition that say what a new user has anyway.
_INITIAL = ("sanitize-payload", "resetkeys", "resetchannels", "resetpass", "off", "-@all")
_LONG = {"allkeys": "~*", "allchannels": "&*", "allcommands": "+@all"}


def passwords(secret, kind, given=None, datacenter=None):
    """Each user's password on the servers of a ``kind`` (``redis``, ``sentinel``): derived from the secret, unless given.

    One user's password says nothing about the secret or another user's. The Sentinels of one datacenter have no business with the Redis
    servers of another one, and after a failover would do harm there: so their password is another one in each.

    :param given: dict of user to password, for the users that are to have another one
    :param datacenter: name of the servers' datacenter, where there are several
    :raises ValueError: when there is no secret, or a password is given to a user that does not exist
    """
    if not isinstance(secret, str) or not secret:
        raise ValueError(f"there is no secret to derive the passwords of {kind} from")
    unknown = sorted(set(given or {}) - set(RULES[kind]))
    if unknown:
        raise ValueError(f"{kind} has no user {', '.join(unknown)}; its users are {', '.join(RULES[kind])}")
    return {user: (given or {}).get(user) or _derived(secret, kind, _in(datacenter, kind, user)) for user in RULES[kind]}


def _in(datacenter, kind, user):
    return f"{user} {datacenter}" if datacenter and (kind, user) == ("redis", "sentinel") else user


def _derived(secret, kind, user):
    return hmac.new(secret.encode(), f"openclaw.ha {kind} {user}".encode(), hashlib.sha256).hexdigest()


@dataclasses.dataclass(frozen=True)
class User:
    """One ACL user: ``hashes`` are the SHA-256 digests of its passwords, ``rules`` the words that allow and deny."""

    on: bool = False
    nopass: bool = False
    hashes: frozenset = frozenset()
    rules: tuple = ()

    def words(self):
        """The definition after the user's name, as an ACL file and ACL SETUSER take it."""
        hashes = [f"#{one}" for one in sorted(self.hashes)]
        return ["on" if self.on else "off", *(["nopass"] if self.nopass else []), *hashes, "resetchannels", *self.rules]


def _rules(words):
    """Rules in one order. Where only allowing words follow "nothing", their order has no meaning; elsewhere it has one."""
    plain = [_LONG.get(word, word) for word in words if word not in _INITIAL]
    return tuple(sorted(plain, key=lambda word: (word[0] == "+", word)) if all(word[0] in "~%&+" for word in plain) else plain)


def parse(lines):
    """Users by name, from the lines of ACL LIST or of an ACL file."""
    users = {}
    for words in map(str.split, lines):
        if words[:1] != ["user"] or len(words) < 2:
            continue
        rest = words[2:]
        users[words[1]] = User(
            on="on" in rest,
            nopass="nopass" in rest,
            hashes=frozenset(word[1:] for word in rest if word.startswith("#")),
            rules=_rules(word for word in rest if word not in ("on", "nopass") and not word.startswith("#")),
        )
    return users


def understand(users, categories):
    """The same users with every rule about commands written out, to compare them: a server says the same in words of its own choice.

    :param categories: commands by category as ACL CAT names them, such as ``{"admin": ["config|get", "config|set"]}``
    """
    names = set().union(*categories.values())
    # A command with subcommands is the sum of them.
    every = {name for name in names if not any(other.startswith(f"{name}|") for other in names)}

    def written_out(rules):
        allowed = set()
        for word in rules:
            sign, name = word[0], word[1:]
            if sign not in "+-":
                continue
            if name.startswith("@"):
                meant = every if name == "@all" else every & set(categories.get(name[1:], ()))
            else:
                meant = {one for one in every if one == name or one.startswith(f"{name}|")} or {name}
            allowed = allowed | meant if sign == "+" else allowed - meant
        if allowed == every:
            return ("+@all",)
        return tuple(f"+{name}" for name in sorted(allowed))

    return {
        name: dataclasses.replace(user, rules=tuple(sorted(word for word in user.rules if word[0] not in "+-")) + written_out(user.rules))
        for name, user in users.items()
    }


def text(users):
    """The content of an ACL file."""
    return "".join(f"user {name} {' '.join(user.words())}\n" for name, user in sorted(users.items()))


def target(present, kind, given, keep_older):
    """The users that a server should have.

    :param present: users by name, as they are now
    :param given: password by user name, for every user of this kind
    :param keep_older: whether passwords and users that exist, but are not wanted, stay
    """
    wanted = {"default": User(rules=_rules(DEFAULT[kind].split()))}
    for name, rules in RULES[kind].items():
        older = present[name].hashes if keep_older and name in present else frozenset()
        digest = hashlib.sha256(given[name].encode()).hexdigest()
        wanted[name] = User(True, False, older | {digest}, _rules(rules.split()))
    return {**(present if keep_older else {}), **wanted}


def changes(present, wanted):
    """What differs, as ``{user: [sentences]}``; passwords are counted, never shown."""
    found = {}
    for name in sorted({*present, *wanted}):
        before, after = present.get(name), wanted.get(name)
        if before == after:
            continue
        if after is None:
            found[name] = ["removed"]
            continue
        said = ["added"] if before is None else []
        before = before or User()
        if before.on != after.on:
            said.append("on" if after.on else "off")
        if before.nopass and not after.nopass:
            said.append("needs a password")
        for count, word in ((len(after.hashes - before.hashes), "added"), (len(before.hashes - after.hashes), "removed")):
            if count:
                said.append(f"{count} password{'s' if count > 1 else ''} {word}")
        said += [f"now has {word}" for word in after.rules if word not in before.rules]
        said += [f"no longer has {word}" for word in before.rules if word not in after.rules]
        found[name] = said
    return found
