"""The steps of an SMTP client: what it waits for, for how long, and which reply is success."""

from enum import IntEnum

from msgspec import Struct


class Step(IntEnum):
    """What was sent last: the command whose reply is awaited."""

    GREETING = 0  # nothing was sent; the server speaks first
    EHLO = 1
    HELO = 2
    STARTTLS = 3
    TLS = 4  # no command: the handshake, in which no reply may come
    MAIL = 5
    RCPT = 6
    DATA = 7
    END = 8  # the dot that ends the data
    BDAT = 9
    RSET = 10
    QUIT = 11


PHRASES = (
    "the greeting",
    "the reply to EHLO",
    "the reply to HELO",
    "the reply to STARTTLS",
    "the TLS handshake",
    "the reply to MAIL",
    "the reply to RCPT",
    "the reply to DATA",
    "the reply to the end of the data",
    "the reply to BDAT",
    "the reply to RSET",
    "the reply to QUIT",
)

# The class of reply (RFC 5321 section 4.2.1) by which a step has succeeded.
SUCCESS = (2, 2, 2, 2, 0, 2, 2, 3, 2, 2, 2, 2)


class Timeouts(Struct, frozen=True):
    """Seconds to wait for each reply (RFC 5321 section 4.5.3.2); ours where it names none."""

    connect: float = 30  # ours: a host that is up answers in milliseconds
    greeting: float = 300  # 4.5.3.2.1
    hello: float = 300  # ours: like the greeting
    tls: float = 60  # ours: for the reply to STARTTLS, and again for the handshake
    mail: float = 300  # 4.5.3.2.2
    rcpt: float = 300  # 4.5.3.2.3
    data: float = 120  # 4.5.3.2.4
    block: float = 180  # 4.5.3.2.5, for each piece of the message
    end: float = 600  # 4.5.3.2.6
    reset: float = 20  # ours: nothing is lost with the connection
    quit: float = 10  # ours: likewise

    def by_step(self) -> tuple[float, ...]:
        return (
            self.greeting,
            self.hello,
            self.hello,
            self.tls,
            self.tls,
            self.mail,
            self.rcpt,
            self.data,
            self.end,
            self.end,
            self.reset,
            self.quit,
        )
