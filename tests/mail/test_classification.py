"""Replies as hosts send them, with what they mean; replies.txt has one a line."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastmta.mail.classification import CATEGORIES, Category, classify
from fastmta.mail.reply import Reply

REPLIES = [
    line.split(": ", 1) for line in Path(__file__).with_name("replies.txt").read_text().splitlines()
]


def reply_of(line: str) -> Reply:
    code, _, rest = line.replace("\\n", "\n").partition(" ")
    enhanced, _, text = rest.partition(" ")
    if enhanced.count(".") == 2 and enhanced.replace(".", "").isdigit():
        return Reply(int(code), enhanced, text)
    return Reply(int(code), "", rest)


@pytest.mark.parametrize(("category", "line"), REPLIES)
def test_what_a_reply_means(category: str, line: str) -> None:
    assert classify(reply_of(line)) == category


def test_there_is_a_reply_for_each_category() -> None:
    assert {category for category, _ in REPLIES} == set(CATEGORIES) - {"operator"}


@given(st.integers(0, 999), st.text(max_size=20), st.text(max_size=3000))
def test_any_reply_has_a_category(code: int, enhanced: str, text: str) -> None:
    assert classify(Reply(code, enhanced, text)) in Category
