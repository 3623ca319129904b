"""POP3 over real sockets, out of real mailboxes."""

from pathlib import Path

from tests.server.pop3_service import serving
from tests.support import run

ONE = b"Subject: one\r\n\r\nhello\r\n"
DOTS = b"Subject: dots\r\n\r\n.\r\n..\r\n.a\r\n\r\n.\r\n"
TWO = b"Subject: two\r\n\r\n" + b"x" * 70 + b"\r\n"


def test_a_session(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, ONE, DOTS, TWO) as server:
            client = await server.logged_in()
            sizes = [len(ONE), len(DOTS), len(TWO)]
            assert await client.say("STAT") == f"+OK 3 {sum(sizes)}"
            assert await client.many("LIST") == [f"{i + 1} {n}" for i, n in enumerate(sizes)]
            assert await client.message("RETR 1") == ONE
            assert await client.message("RETR 2") == DOTS
            assert await client.message("TOP 3 0") == b"Subject: two\r\n\r\n"
            assert await client.say("DELE 2") == "+OK Deleted at QUIT"
            assert (await client.say("RETR 2"))[:4] == "-ERR"
            assert await client.say("STAT") == f"+OK 2 {sizes[0] + sizes[2]}"
            assert await server.contents() == [1, 2, 3]
            assert await client.say("QUIT") == "+OK Bye"
            assert await client.end() == b""
            assert await server.contents() == [1, 3]

    run(scenario())
