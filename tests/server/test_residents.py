"""Recipients with mailboxes here: what RCPT and the end of a message answer, who forwards what."""

from collections.abc import Callable, Iterator
from pathlib import Path

import lmdb
import pytest
from msgspec import Struct, structs

from fastmta.config import Domain, DomainName, MailAddress
from fastmta.mail.arrival import Arrival
from fastmta.mail.envelope import Recipient
from fastmta.mail.reply import Reply
from fastmta.protocol.smtp_machine import Event
from fastmta.server.residents import (
    LOOPS,
    MAX_SENDING_ON,
    UNKNOWN_RECIPIENTS,
    Residents,
)
from fastmta.store.directory import Directory
from tests.protocol.dialogue import Dialogue, greeted
from tests.protocol.test_smtp_in_threats import RELAY_FORMS
from tests.store.test_directory import Town, config


class Used(Struct):
    octets: int


class Scene(Town):
    """A town with what its mailboxes hold."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.used: dict[str, int] = {}
        self.breaks = False

    @property
    def residents(self) -> Residents:
        return Residents(self.directory, self.usage)

    def usage(self, account: str) -> Used:
        if self.breaks:
            raise lmdb.DiskError("planted")
        return Used(self.used.get(account, 0))

    def vet(self, address: str, may_relay: bool, arrival: Arrival) -> bytes:
        return self.residents.vet(address, may_relay, arrival)

    def dialogue(self, may_relay: bool = False, **options: object) -> Dialogue:
        return greeted(may_relay=may_relay, vet=self.vet, **options)

    def spread(self, arrival: Arrival) -> list[tuple[int, str, list[str]]]:
        """Of what is queued: its id, who sends it on, and to whom."""
        found = self.residents.expand(arrival, numbers())
        return [(one.message, one.forwarded_by, addresses(one)) for one in found]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    opened = Scene(tmp_path)
    yield opened
    opened.accounts.close()


def numbers() -> Callable[[], int]:
    given = iter(range(101, 200))
    return lambda: next(given)


def addresses(arrival: Arrival) -> list[str]:
    return [one.address for one in arrival.recipients]


def arrival(*to: str | Recipient, sender: str = "s@c.test", head: bytes = b"") -> Arrival:
    recipients = [one if isinstance(one, Recipient) else Recipient(one) for one in to]
    parts = [head + b"Subject: x\r\n", b"\r\nbody\r\n"]
    return Arrival(100, sender, recipients, parts, sum(map(len, parts)), 5.0)


def test_mail_for_local_domains_is_taken_from_anybody(scene: Scene) -> None:
    scene.add("bob@a.test", "info@b.test")
    dialogue = scene.dialogue()
    assert dialogue.say("MAIL FROM:<>", "RCPT TO:<bob+x@A.test>", "RCPT TO:<info@b.test>") == [
        "250 2.1.0",
        "250 2.1.5",
        "250 2.1.5",
    ]
    assert dialogue.say("RCPT TO:<x@c.test>") == ["550 5.7.1"]
    assert scene.dialogue(True).say("MAIL FROM:<>", "RCPT TO:<x@c.test>")[-1] == "250 2.1.5"


def test_threat_10_who_is_unknown_is_refused_late_and_counted(scene: Scene) -> None:
    before = UNKNOWN_RECIPIENTS.value
    dialogue = scene.dialogue(max_errors=4)
    dialogue.say("MAIL FROM:<>")
    for _ in range(3):
        assert dialogue.say("RCPT TO:<nobody@a.test>") == ["550 5.1.1"]
    assert dialogue.events == [Event.DELAY] * 3
    assert dialogue.say("RCPT TO:<nobody@a.test>") == ["550 5.1.1", "421 4.7.0"]
    assert UNKNOWN_RECIPIENTS.value == before + 4


def test_who_may_relay_hears_it_at_once_and_it_is_no_error(scene: Scene) -> None:
    dialogue = scene.dialogue(True, max_errors=2)
    dialogue.say("MAIL FROM:<>")
    for _ in range(5):
        assert dialogue.say("RCPT TO:<nobody@a.test>") == ["550 5.1.1"]
    assert not dialogue.events


def test_vrfy_tells_nothing(scene: Scene) -> None:
    scene.add("bob@a.test")
    dialogue = scene.dialogue()
    assert dialogue.say("VRFY bob@a.test", "VRFY nobody@a.test") == ["252 2.1.5"] * 2


def test_postmaster_is_taken_in_every_form(scene: Scene) -> None:
    """RFC 5321 section 4.5.1; `mx.test` is the host's own name."""
    scene.add("bob@a.test")
    scene.configure(postmaster="bob@a.test")
    for path in ("postmaster@a.test", "POSTMASTER@b.test", "Postmaster@mx.test"):
        assert scene.dialogue().say("MAIL FROM:<>", f"RCPT TO:<{path}>")[-1] == "250 2.1.5"
    assert scene.spread(arrival("postmaster@a.test")) == []
    assert scene.spread(arrival("PostMaster@mx.test")) == [(100, "", ["bob@a.test"])]


@pytest.mark.parametrize("path", RELAY_FORMS)
def test_threat_04_local_domains_open_the_relay_to_none_of_its_forms(
    scene: Scene, path: str
) -> None:
    """`relay.example.test` is local, and everything in it is somebody's."""
    scene.add("user@relay.example.test")
    everything = Domain(catch_all=MailAddress("user@relay.example.test"))
    settings = structs.replace(config(), domains={DomainName("relay.example.test"): everything})
    scene.directory = Directory(settings, scene.accounts)
    dialogue = scene.dialogue()
    dialogue.say("MAIL FROM:<> SMTPUTF8")
    [answer] = dialogue.say(f"RCPT TO:<{path}>")
    if answer != "250 2.1.5":
        assert answer in ("550 5.7.1", "501 5.1.3", "501 5.5.4")
        return
    assert dialogue.say("DATA", "Subject: x", "", ".") == ["354", "250 2.0.0"]
    [taken] = dialogue.arrivals
    [address] = addresses(taken)
    assert address.lower().endswith("@relay.example.test")  # where the router sends it
    assert scene.who(address) == "user@relay.example.test"
    assert scene.spread(taken) == []


def test_without_a_postmaster_a_bare_one_is_relaying(scene: Scene) -> None:
    assert scene.dialogue().say("MAIL FROM:<>", "RCPT TO:<postmaster>")[-1] == "550 5.7.1"


# Room


@pytest.mark.parametrize(
    ("used", "size", "answer"),
    [
        (0, "", "250 2.1.5"),
        (999, "", "250 2.1.5"),
        (1000, "", "452 4.2.2"),
        (2000, "", "452 4.2.2"),
        (500, " SIZE=500", "250 2.1.5"),
        (500, " SIZE=501", "452 4.2.2"),
        (0, " SIZE=1001", "552 5.2.3"),
        (2000, " SIZE=1001", "552 5.2.3"),
    ],
)
def test_a_full_mailbox_is_refused_at_rcpt(scene: Scene, used: int, size: str, answer: str) -> None:
    scene.add("bob@a.test", quota=1000)
    scene.used["bob@a.test"] = used
    dialogue = scene.dialogue(max_errors=1)
    said = dialogue.say(f"MAIL FROM:<>{size}", "RCPT TO:<bob@a.test>")
    assert said[1] == answer
    assert dialogue.is_closed is (answer[0] == "5")  # a full mailbox is no error of the client


def test_disabled_accounts_get_nothing(scene: Scene) -> None:
    scene.add("bob@a.test", disabled=True)
    assert scene.dialogue().say("MAIL FROM:<>", "RCPT TO:<bob@a.test>")[-1] == "550 5.2.1"


def test_who_forwards_needs_no_room_unless_a_copy_is_kept(scene: Scene) -> None:
    scene.add("bob@a.test", quota=1000, forward=("x@c.test",))
    scene.used["bob@a.test"] = 1000
    assert scene.dialogue().say("MAIL FROM:<>", "RCPT TO:<bob@a.test>")[-1] == "250 2.1.5"
    scene.accounts.change("bob@a.test", keep=True)
    assert scene.dialogue().say("MAIL FROM:<>", "RCPT TO:<bob@a.test>")[-1] == "452 4.2.2"


@pytest.mark.parametrize(
    ("to", "answer"),
    [
        (["full@a.test"], "452 4.2.2"),
        (["small@a.test"], "552 5.2.3"),
        (["small@a.test", "full@a.test"], "452 4.2.2"),
        (["full@a.test", "bob@a.test"], ""),
        (["full@a.test", "x@c.test"], ""),
        (["full@a.test", "nobody@a.test"], ""),  # a policy's doing; a report tells of it
    ],
)
def test_a_message_that_nobody_can_have_is_refused_behind_its_end(
    scene: Scene, to: list[str], answer: str
) -> None:
    scene.add("bob@a.test")
    scene.add("full@a.test", quota=1000)
    scene.add("small@a.test", quota=10)
    scene.used["full@a.test"] = 990
    refusal = scene.residents.refusal(arrival(*to))
    assert (str(refusal)[:9] if refusal else "") == answer


def test_where_accounts_cannot_be_read_the_client_comes_again(scene: Scene) -> None:
    scene.add("bob@a.test", quota=1000)
    scene.breaks = True
    assert scene.dialogue().say("MAIL FROM:<>", "RCPT TO:<bob@a.test>")[-1] == "451 4.3.0"


# Forwarding


def test_what_nobody_forwards_is_left_as_it_is(scene: Scene) -> None:
    scene.add("bob@a.test")
    assert scene.residents.expand(arrival("bob@a.test", "x@c.test"), numbers()) == []


def test_what_goes_elsewhere_is_a_message_of_its_own(scene: Scene) -> None:
    scene.add("bob@a.test", forward=("x@c.test", "y@c.test"))
    scene.add("eve@a.test", forward=("z@c.test",), keep=True)
    original = arrival("bob@a.test", "eve+1@a.test", "w@c.test")
    found = scene.residents.expand(original, numbers())
    assert [(one.message, one.forwarded_by, addresses(one)) for one in found] == [
        (100, "", ["eve+1@a.test", "w@c.test"]),
        (101, "bob@a.test", ["x@c.test", "y@c.test"]),
        (102, "eve@a.test", ["z@c.test"]),
    ]
    assert found[0].parts == original.parts
    assert found[1].parts[0] == b"Delivered-To: bob@a.test\r\n"
    assert found[1].parts[1:] == original.parts
    assert all(one.size == sum(map(len, one.parts)) for one in found)
    assert {one.sender for one in found} == {"s@c.test"}


def test_where_all_is_sent_on_the_first_copy_has_the_id_that_the_client_hears(
    scene: Scene,
) -> None:
    scene.add("bob@a.test", forward=("x@c.test",))
    assert scene.spread(arrival("bob@a.test")) == [(100, "bob@a.test", ["x@c.test"])]


def test_an_address_that_several_ways_lead_to_gets_it_once(scene: Scene) -> None:
    scene.add("bob@a.test", forward=("x@c.test", "carol@a.test"))
    scene.add("eve@a.test", forward=("x@c.test",))
    scene.add("carol@a.test")
    got = scene.spread(arrival("carol@a.test", "bob@a.test", "eve@a.test", "carol@a.test"))
    assert got == [(100, "", ["carol@a.test"]), (101, "bob@a.test", ["x@c.test"])]
    assert scene.spread(arrival("x@c.test", "bob@a.test")) == [
        (100, "", ["x@c.test", "carol@a.test"])
    ]


def test_what_has_come_back_stays_in_the_mailbox(scene: Scene) -> None:
    before = LOOPS.value
    scene.add("bob@a.test", forward=("x@c.test",))
    back = b"Delivered-To: Bob@a.test\r\n"
    assert scene.spread(arrival("bob@a.test", head=back)) == []
    assert scene.spread(arrival("bob@a.test", "w@c.test", head=back)) == []
    assert LOOPS.value == before + 2
    folded = b"delivered-to:\r\n\tbob@a.test\r\n"
    assert scene.spread(arrival("bob@a.test", head=folded)) == []
    other = b"Delivered-To: eve@a.test\r\nX: Delivered-To: bob@a.test\r\n"
    assert scene.spread(arrival("bob@a.test", head=other)) == [(100, "bob@a.test", ["x@c.test"])]
    assert LOOPS.value == before + 3


def test_one_way_of_several_that_is_a_loop_keeps_the_mail_here_too(scene: Scene) -> None:
    scene.add("bob@a.test", forward=("eve@a.test", "y@c.test"))
    scene.add("eve@a.test", forward=("x@c.test",))
    back = b"Delivered-To: eve@a.test\r\n"
    assert scene.spread(arrival("bob@a.test", head=back)) == [
        (100, "", ["eve@a.test"]),
        (101, "bob@a.test", ["y@c.test"]),
    ]
    found = scene.residents.expand(arrival("eve+x@a.test", head=back), numbers())
    assert found == []  # in the mailbox that it was for


def test_a_ring_of_accounts_keeps_the_mail(scene: Scene) -> None:
    scene.add("bob@a.test", forward=("eve@a.test",))
    scene.add("eve@a.test", forward=("bob@a.test",))
    assert scene.spread(arrival("bob+x@a.test")) == [(100, "", ["eve@a.test"])]


def test_an_account_may_send_on_under_its_own_name_but_no_reports(scene: Scene) -> None:
    scene.configure(forward_as="account")
    scene.add("bob@a.test", forward=("x@c.test",))
    [copy] = scene.residents.expand(arrival("bob@a.test"), numbers())
    assert copy.sender == "bob@a.test"
    assert scene.residents.expand(arrival("bob@a.test", sender=""), numbers()) == []


def test_only_so_many_recipients_of_a_message_may_forward(scene: Scene) -> None:
    for i in range(MAX_SENDING_ON + 1):
        scene.add(f"n{i}@a.test", forward=("x@c.test",))
    scene.add("bob@a.test")
    dialogue = scene.dialogue()
    dialogue.say("MAIL FROM:<>")
    said = dialogue.say(*(f"RCPT TO:<n{i}@a.test>" for i in range(MAX_SENDING_ON + 1)))
    assert said == ["250 2.1.5"] * MAX_SENDING_ON + ["452 4.5.3"]
    assert dialogue.say("RCPT TO:<bob@a.test>", "RSET", "MAIL FROM:<>") == [
        "250 2.1.5",
        "250 2.0.0",
        "250 2.1.0",
    ]
    assert dialogue.say(f"RCPT TO:<n{MAX_SENDING_ON}@a.test>") == ["250 2.1.5"]


def wishes(found: list[Arrival]) -> dict[str, tuple[str, str]]:
    return {to.address: (to.notify, to.orcpt) for one in found for to in one.recipients}


def test_what_the_sender_wants_to_know_goes_along(scene: Scene) -> None:
    """RFC 3461 section 5.2.7.2 and 5.2.7.3: success is told for one of several alone."""
    scene.add("one@a.test", forward=("x@c.test",))
    scene.add("two@a.test", forward=("y@c.test", "z@c.test"), keep=True)
    asked = Recipient("one@a.test", "SUCCESS,FAILURE", "rfc822;first@d.test")
    assert wishes(scene.residents.expand(arrival(asked), numbers())) == {
        "x@c.test": ("SUCCESS,FAILURE", "rfc822;first@d.test")
    }
    for notify, later in (
        ("SUCCESS,FAILURE", "FAILURE"),
        ("SUCCESS", "NEVER"),
        ("NEVER", "NEVER"),
        ("", ""),
    ):
        asked = Recipient("two@a.test", notify)
        assert wishes(scene.residents.expand(arrival(asked), numbers())) == {
            "two@a.test": (notify, ""),
            "y@c.test": (later, "rfc822;two@a.test"),
            "z@c.test": (later, "rfc822;two@a.test"),
        }


def test_verdicts_are_replies(scene: Scene) -> None:
    verdict = scene.residents.verdict("nobody@a.test", arrival())
    assert verdict == bytes(Reply(550, "5.1.1", "No such user here"))
    assert scene.residents.verdict("x@c.test", arrival()) is None
