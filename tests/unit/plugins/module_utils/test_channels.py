# Copyright: the openclaw.ha contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gateway_channels as data."""

import json

import pytest

from ansible_collections.openclaw.ha.plugins.module_utils import channels

TELEGRAM = {"type": "telegram", "mode": "webhook", "secrets": {"bot_token": "123:abc", "webhook_secret": "s3cret_"}, "allow_from": [4242]}
POLLING = {"type": "telegram", "account": "poll", "mode": "polling", "secrets": {"bot_token": "456:def"}, "allow_from": [4242]}
SLACK = {"type": "slack", "mode": "http", "secrets": {"bot_token": "xoxb-1", "signing_secret": "5igned-key"}, "settings": {"dmPolicy": "open"}}
WHATSAPP = {"type": "whatsapp", "allow_from": ["+15550001"]}
SWITCHES = "/run/openclaw-owner/1/channels.json"
REPLICA = {"id": "node1-1", "address": "192.0.2.11", "port": 18789}


def test_what_each_account_is():
    found = channels.accounts([TELEGRAM, POLLING, SLACK, WHATSAPP])
    assert [(one["id"], one["receivers"], one["package"], one["path"]) for one in found] == [
        ("telegram/default", "every", None, "/webhooks/telegram/default"),
        ("telegram/poll", "one", None, None),
        ("slack/default", "every", "@openclaw/slack", "/webhooks/slack/default"),
        ("whatsapp/default", "one", "@openclaw/whatsapp", None),
    ]
    assert channels.packages([TELEGRAM, WHATSAPP, SLACK, WHATSAPP | {"account": "second"}]) == ["@openclaw/slack", "@openclaw/whatsapp"]


def test_a_replica_hears_webhooks_on_ports_of_its_own():
    second = TELEGRAM | {"account": "second"}
    built = channels.config([TELEGRAM, POLLING, second, SLACK], REPLICA, "https://claw.example.org/", SWITCHES)
    assert [built["telegram"]["accounts"][name]["webhookPort"] for name in ("default", "second")] == [18900, 18901]
    assert built["telegram"]["accounts"]["second"]["webhookUrl"] == "https://claw.example.org/webhooks/telegram/second"
    assert built["telegram"]["accounts"]["default"]["webhookHost"] == "192.0.2.11"
    # Between this replica's own ports and the first one of the next replica on the host.
    assert 110 < channels.FIRST_LISTENER and channels.FIRST_LISTENER + channels.MOST_LISTENERS - 1 < 120
    assert built["slack"]["accounts"]["default"] | {"mode": "http", "webhookPath": "/webhooks/slack/default"} == built["slack"]["accounts"]["default"]


def test_what_one_replica_may_have_is_in_a_file_that_its_owner_writes():
    entries = [TELEGRAM, POLLING, WHATSAPP]
    built = channels.config(entries, REPLICA, "https://claw.example.org", SWITCHES)
    assert built["$include"] == SWITCHES and list(built["telegram"]["accounts"]) == ["default"] and "whatsapp" not in built
    owned = channels.owned(entries)
    assert list(owned) == ["telegram/poll", "whatsapp/default"]
    account = owned["telegram/poll"]["telegram"]["accounts"]["poll"]
    assert account["enabled"] is True and account["allowFrom"] == [4242] and "webhookUrl" not in account
    assert account["botToken"] == {"source": "env", "provider": "default", "id": "OPENCLAW_CHANNEL_TELEGRAM_POLL_BOT_TOKEN"}
    both = channels.all_owned([*entries, POLLING | {"account": "other"}])
    assert {kind: sorted(part["accounts"]) for kind, part in both.items()} == {"telegram": ["other", "poll"], "whatsapp": ["default"]}
    assert "$include" not in channels.config([TELEGRAM], REPLICA, "https://claw.example.org", SWITCHES) and channels.owned([TELEGRAM]) == {}


def test_what_the_ingresses_are_told():
    told = channels.ingress([TELEGRAM, POLLING, SLACK], [REPLICA | {"verdict_port": 18700}], "/etc/secrets")
    assert told["accounts"][0] == {
        "channel": "telegram",
        "account": "default",
        "type": "telegram",
        "path": "/webhooks/telegram/default",
        "secrets": ["/etc/secrets/telegram-default"],
    }
    assert told["replicas"] == [
        {
            "id": "node1-1",
            "verdict_url": "http://192.0.2.11:18700/health",
            "webhooks": {
                "telegram/default": "http://192.0.2.11:18900/webhooks/telegram/default",
                "slack/default": "http://192.0.2.11:18789/webhooks/slack/default",
            },
        }
    ]
    assert channels.ingress_secrets([TELEGRAM, POLLING, SLACK]) == {"telegram-default": "s3cret_", "slack-default": "5igned-key"}
    assert not [value for value in channels.secrets([TELEGRAM, SLACK]).values() if value in json.dumps(told)]


@pytest.mark.parametrize("entries", [None, "telegram", [{"type": "icq"}, "x", {"type": "telegram"}, POLLING, TELEGRAM, WHATSAPP]])
def test_the_topology_is_told_what_it_needs_of_sound_entries(entries):
    sound = isinstance(entries, list)
    assert channels.webhooks(entries) == ["/webhooks/telegram/default"] * sound
    assert channels.singletons(entries) == ["telegram/poll", "whatsapp/default"] * sound


def test_secrets_are_in_the_environment_only():
    entries = [TELEGRAM, POLLING, SLACK]
    assert channels.secrets(entries) == {
        "OPENCLAW_CHANNEL_TELEGRAM_DEFAULT_BOT_TOKEN": "123:abc",
        "OPENCLAW_CHANNEL_TELEGRAM_DEFAULT_WEBHOOK_SECRET": "s3cret_",
        "OPENCLAW_CHANNEL_TELEGRAM_POLL_BOT_TOKEN": "456:def",
        "OPENCLAW_CHANNEL_SLACK_DEFAULT_BOT_TOKEN": "xoxb-1",
        "OPENCLAW_CHANNEL_SLACK_DEFAULT_SIGNING_SECRET": "5igned-key",
    }
    shown = json.dumps([channels.accounts(entries), channels.config(entries, REPLICA, "https://claw.example.org", SWITCHES), channels.owned(entries)])
    assert not [value for value in channels.secrets(entries).values() if value in shown]


BROKEN = [
    ("telegram", "gateway_channels: found a str; allowed a list of accounts"),
    ([{"type": "icq"}], "entry 1: found type 'icq'; allowed telegram, slack, discord, whatsapp, signal"),
    (["telegram"], "entry 1: found type 'str'"),
    ([TELEGRAM | {"mode": None}], "(telegram/default): found no mode; allowed webhook, polling"),
    ([TELEGRAM | {"mode": "push"}], "found mode 'push'; allowed webhook, polling"),
    ([TELEGRAM | {"account": "Support Team"}], "found account 'Support Team'; allowed up to 32 of a-z"),
    ([TELEGRAM, TELEGRAM], "entry 2 (telegram/default): found the account of entry 1 again"),
    ([TELEGRAM | {"token": "x"}], "found token; allowed type, account, mode, secrets"),
    ([TELEGRAM | {"secrets": {"bot_token": "123:abc"}}], "found no secrets.webhook_secret; allowed a text"),
    ([TELEGRAM | {"secrets": {"bot_token": "123:abc", "webhook_secret": "with space"}}], "found secrets.webhook_secret with other characters"),
    ([POLLING | {"secrets": TELEGRAM["secrets"]}], "found secrets.webhook_secret; allowed bot_token in this mode"),
    ([TELEGRAM | {"allow_from": []}], "found nobody in allow_from and no settings.dmPolicy"),
    ([TELEGRAM | {"allow_from": "4242"}], "found allow_from that is no list of ids"),
    ([TELEGRAM | {"settings": {"webhookPort": 1}}], "found settings.webhookPort, which the role sets itself"),
    ([TELEGRAM | {"settings": {"botToken": "123:abc"}}], "found settings.botToken, which the role sets itself"),
    ([TELEGRAM | {"settings": {"dmPolicy": "pairing"}}], "found settings.dmPolicy pairing"),
    ([TELEGRAM | {"account": f"a{number}"} for number in range(10)], "found 10 accounts of telegram in mode webhook; allowed 9"),
]


@pytest.mark.parametrize("entries, sentence", BROKEN, ids=[sentence for _entries, sentence in BROKEN])
def test_what_makes_no_account_is_refused_in_one_sentence(entries, sentence):
    found = channels.problems(entries)
    assert len(found) == 1 and sentence in found[0], found
    assert "123:abc" not in found[0] and "with space" not in found[0]
    with pytest.raises(channels.ChannelError, match="gateway_channels"):
        channels.accounts(entries)


def test_nothing_is_wrong_with_sound_accounts():
    assert channels.problems([TELEGRAM, POLLING, SLACK, WHATSAPP]) == [] and channels.problems([]) == []
