"""The user app may do what the plugin of the gateways does, and nothing else."""

import pathlib
import re

from ansible_collections.openclaw.ha.plugins.module_utils import redis_access

LIBRARY = pathlib.Path(redis_access.__file__).resolve().parents[2] / "roles/gateway/files/shared_state/lib"
#: What the ioredis library sends by itself, to give up a transaction. (It asks for INFO too, as the plugin does.)
BY_ITSELF = {"discard"}
#: Methods of the library's client that are no commands.
NOT_COMMANDS = {"pipeline", "call", "on", "disconnect"}


def test_the_rules_are_what_the_code_sends():
    source = "\n".join(path.read_text() for path in LIBRARY.glob("*.js"))
    sent = {word.lower() for word in re.findall(r"redis\.call\('(\w+)'", source)}
    sent |= {word.lower() for word in re.findall(r"\.call\(\"(\w+)\"", source)}
    for name in ("store.js", "link.js"):
        text = (LIBRARY / name).read_text()
        chains = re.findall(r"\b(?:client|turns|commits)\s*((?:\.\w+\((?:[^()]|\([^()]*\))*\)\s*)+)", text)
        sent |= {word for chain in chains for word in re.findall(r"\.(\w+)\(", chain)} & {
            "eval", "hmget", "lrange", "multi", "exec", "del", "hset", "expire", "ping",
        }  # fmt: skip
    allowed = {word[1:] for word in redis_access.RULES["redis"]["app"].split() if word.startswith("+")}
    assert sent - allowed == set(), "the plugin would be refused"
    assert allowed - sent == BY_ITSELF, "nobody needs this"
