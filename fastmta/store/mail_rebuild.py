"""Rows of mailboxes, made anew of what else is known: what is done where one cannot be read."""

from contextlib import suppress

from fastmta.store import mail_records as records
from fastmta.store.env import Databases, Transaction
from fastmta.store.mail_records import Mailbox, Next
from fastmta.store.records import Unreadable


def find_number(txn: Transaction, db: Databases, key: bytes) -> int | None:
    """The id of the mailbox whose row is at a key."""
    with txn.cursor(db["names"]) as cursor:
        for number, name in cursor:
            if name == key:
                return int.from_bytes(number)
    return None


def next_numbers(txn: Transaction, db: Databases) -> Next:
    """Numbers that no mailbox has, nor messages of one that was lost: it would get their mail."""
    numbers = Next()
    for name in ("names", "entries"):
        with txn.cursor(db[name]) as cursor:
            if cursor.last():
                numbers.mailbox = max(numbers.mailbox, int.from_bytes(cursor.key()[:4]) + 1)
    with txn.cursor(db["mailboxes"]) as cursor:
        for row in cursor.iternext(keys=False):
            with suppress(Unreadable):
                mailbox = records.unpack_mailbox(row)
                numbers.mailbox = max(numbers.mailbox, mailbox.id + 1)
                numbers.uidvalidity = max(numbers.uidvalidity, mailbox.uidvalidity + 1)
    return numbers


def count_entries(txn: Transaction, db: Databases, mailbox: Mailbox) -> None:
    """Set what a row tells of its entries; no modseq or uid that was there comes again."""
    start = records.mailbox_key(mailbox.id)
    with txn.cursor(db["entries"]) as cursor:
        more = cursor.set_range(start)
        while more and (key := cursor.key()).startswith(start):
            mailbox.messages += 1
            mailbox.uidnext = int.from_bytes(key[len(start) :]) + 1
            with suppress(Unreadable):  # it is moved aside when it is read
                entry = records.unpack_entry(cursor.value())
                mailbox.octets += entry.size
                mailbox.modseq = max(mailbox.modseq, entry.modseq + 1)
            more = cursor.next()
    with txn.cursor(db["changes"]) as cursor:
        more = cursor.set_range(start)
        while more and (key := cursor.key()).startswith(start):
            mailbox.modseq = max(mailbox.modseq, int.from_bytes(key[len(start) :]) + 1)
            more = cursor.delete()
    mailbox.floor = mailbox.modseq  # who knew an earlier one looks at the whole mailbox


def sum_mailboxes(txn: Transaction, db: Databases, key: bytes, inbox: Mailbox) -> None:
    """Set what the row of INBOX, whose key is given, counts for its account."""
    inbox.all_messages, inbox.all_octets = inbox.messages, inbox.octets
    start = records.account_key(key)
    with txn.cursor(db["mailboxes"]) as cursor:
        more = cursor.set_range(start)
        while more and (other_key := cursor.key()).startswith(start):
            with suppress(Unreadable):
                other = records.unpack_mailbox(cursor.value())
                inbox.all_messages += other.messages if other_key != key else 0
                inbox.all_octets += other.octets if other_key != key else 0
            more = cursor.next()
