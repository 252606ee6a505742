"""The verdict on messages of a channel finds what it is there to find."""

from tests.channels.checker import Reply, Sent, check, shown


def answer(*texts):
    return f"seen {len(texts)} user messages: " + " | ".join(f'"Conversation info\\n\\n{text}"' for text in texts)


SENT = [Sent(1, 42, "one", True), Sent(2, 42, "two", True), Sent(3, 43, "three", True)]
SOUND = [Reply(42, answer("one"), 1.0), Reply(42, answer("one", "two"), 2.0), Reply(43, answer("three"), 1.5)]


def test_what_is_sound():
    verdict = check(SENT, SOUND, {})
    assert verdict.violations == [] and verdict.answered == 3 and str(verdict).startswith("3 answered once, 0 not accepted")
    # The second answer may be sent first: what counts is what it was made with.
    assert check(SENT, [Reply(42, SOUND[1].text, 0.5), *SOUND[:1], SOUND[2]], {}).violations == []


def test_one_that_is_answered_twice():
    assert check(SENT, [*SOUND, SOUND[0]], {}).violations[0] == "message 1 was answered 2 times"


def test_one_that_is_lost_and_one_of_which_is_told():
    assert check(SENT, SOUND[:2], {}).violations == ["message 3 was accepted, has no answer, and nothing tells of it"]
    verdict = check(SENT, SOUND[:2], {3: "too old"})
    assert verdict.violations == [] and verdict.told == {3: "too old"} and "1 too old" in str(verdict)


def test_one_that_nobody_has_accepted():
    sent = [*SENT[:2], Sent(3, 43, "three", False)]
    verdict = check(sent, SOUND[:2], {})
    assert verdict.violations == [] and verdict.waiting == [3]


def test_an_answer_that_was_made_without_an_earlier_one():
    (found,) = check(SENT, [SOUND[0], Reply(42, answer("two"), 2.0), SOUND[2]], {}).violations
    assert found == "the answer to message 2 of chat 42 was made without 1 earlier ones, such as 'one'"


def test_an_answer_in_another_chat():
    assert check(SENT, [*SOUND[:2], Reply(42, answer("three"), 3.0)], {}).violations[0] == "message 3 of chat 43 was answered in chat 42"


def test_one_turn_for_two_messages_answers_both():
    merged = Reply(42, 'seen 1 user message: "one\\ntwo"', 2.0)
    assert check(SENT[:2], [merged], {}).answered == 2


def test_of_many_messages_the_middle_is_not_quoted():
    texts = [f"text {number}" for number in range(50)]
    sent = [Sent(number, 42, text, True) for number, text in enumerate(texts)][41:]
    replies = [
        Reply(42, f"seen {number + 1} user messages: " + " | ".join(f'"{text}"' for text in [*texts[:20], *texts[number - 19 : number + 1]]), 1.0 - number)
        for number in range(41, 50)
    ]
    assert check(sent, replies, {}).violations == []
    assert len(check(sent, [*replies[:-1], Reply(42, answer(*texts[:20], texts[49]), 2.0)], {}).violations) > 0


def test_words_that_answer_nothing():
    verdict = check(SENT, [*SOUND, Reply(42, "I was interrupted.", 4.0)], {})
    assert verdict.violations == [] and [reply.text for reply in verdict.others] == ["I was interrupted."] and shown("I was interrupted.") == []
