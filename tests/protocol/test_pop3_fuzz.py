"""Dialogues by chance: the machine answers as the oracle, however the octets come."""

import random
from collections.abc import Iterable

import pytest

from tests.protocol.pop3_dialogue import VALIDITY, Dialogue
from tests.protocol.pop3_oracle import (
    GOOD,
    KEYWORDS,
    MAX_ERRORS,
    MESSAGES,
    Ended,
    Oracle,
    told,
)

DIALOGUES = 1000
ARGUMENTS = [
    *(
        b"",
        b"1",
        b"2",
        b"3",
        b"8",
        b"0",
        b"-1",
        b"+1",
        b" 1",
        b"1 ",
        b"01",
        b"1 0",
        b"3 2",
        b"3 -1",
    ),
    *(b"99999999999999999999", b"1 99999999999999999999", b"1 1 1", b"x", b"\xc3\xbc", b"a\x00b"),
    *(
        b"bob@example.test",
        b"BOB@example.test",
        b"hun gry",
        b"hun  gry",
        b"PLAIN",
        b"plain =",
        b"*",
    ),
    *(b"PLAIN AGJvYkBleGFtcGxlLnRlc3QAaHVuIGdyeQ==", b"PLAIN AGJvYgB4", b"PLAIN x", b"en", b"de"),
]
LINES = [b"", b"*", b"=", b"AGJvYkBleGFtcGxlLnRlc3QAaHVuIGdyeQ==", b" ", b"\t", b"+OK", b"QUITT"]
ENDS = [b"\r\n"] * 60 + [b"\n", b"\r\r\n", b" \r\n"]


def conversation(draw: random.Random) -> tuple[dict[int, bytes], bytes]:
    """A maildrop, and what a client says; no two like it."""
    count = draw.randrange(len(MESSAGES) + 1)
    messages = {i * 3 + 1: draw.choice(MESSAGES) for i in range(count)}
    said = b"".join(line(draw) for _ in range(draw.randrange(4)))
    said += GOOD * (draw.random() < 0.9)
    said += b"".join(line(draw) for _ in range(draw.randrange(20)))
    return messages, said + b"QUIT\r\n" * (draw.random() < 0.7)


def line(draw: random.Random) -> bytes:
    if draw.random() < 0.05:
        return draw.choice(LINES) + draw.choice(ENDS)
    word = draw.choice([*KEYWORDS, *["RETR", "TOP", "LIST", "DELE", "UIDL"] * 3]).encode()
    word = word.lower() if draw.random() < 0.3 else word
    numbers = draw.choice(ARGUMENTS[:14]) if draw.random() < 0.7 else draw.choice(ARGUMENTS)
    return word + b" " * bool(numbers) + numbers + draw.choice(ENDS)


def spoken(messages: dict[int, bytes], pieces: Iterable[bytes], draw: random.Random) -> Ended:
    dialogue = Dialogue(messages, max_errors=MAX_ERRORS)
    at_hand = draw.choice([0.0, 0.8, 1.0])
    dialogue.read_ahead(n for n in range(1, len(messages) + 1) if draw.random() < at_hand)
    dialogue.piece = draw.choice([1, 2, 7, 1 << 20])
    said = dialogue.greeting + b"".join(map(dialogue.send, pieces))
    return Ended([said], dialogue.deleted)


@pytest.mark.parametrize("part", range(10))
def test_a_thousand_dialogues_whole_and_split_at_every_octet(part: int) -> None:
    ends = set()
    for seed in range(part * DIALOGUES // 10, (part + 1) * DIALOGUES // 10):
        draw = random.Random(seed)
        messages, said = conversation(draw)
        wanted = Oracle(VALIDITY, messages, MAX_ERRORS).talk(said)
        cut = draw.randrange(len(said) + 1)
        for pieces in (
            [said],
            [said[i : i + 1] for i in range(len(said))],
            [said[:cut], said[cut:]],
        ):
            got = spoken(messages, pieces, draw)
            assert told(wanted.said, got.said[0]), (seed, said, wanted.said, got.said)
            assert got.deleted == wanted.deleted, (seed, said)
        ends.add(wanted.deleted is None)
    assert ends == {True, False}


def test_one_dialogue_is_cut_at_each_of_its_octets() -> None:
    messages = {i + 1: message for i, message in enumerate(MESSAGES)}
    said = GOOD + b"LIST\r\nUIDL 2\r\nRETR 3\r\nDELE 3\r\nTOP 1 0\r\nRETR 7\r\nCAPA\r\nQUIT\r\n"
    wanted = Oracle(VALIDITY, messages, MAX_ERRORS).talk(said)
    for cut in range(len(said) + 1):
        got = spoken(messages, [said[:cut], said[cut:]], random.Random(cut))
        assert told(wanted.said, got.said[0]), cut
        assert got.deleted == wanted.deleted == [3]
