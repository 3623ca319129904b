"""`fastmta mailbox`: mail in and out, what it shows, and an import that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import pytest
from click.testing import CliRunner, Result

from fastmta.cli.mailbox import mailbox as group
from fastmta.mail import mbox
from fastmta.mail.mbox import Mail
from fastmta.protocol.scram import Keys
from fastmta.store import env as store_env
from fastmta.store import mail_export, mail_import, mail_sources
from fastmta.store import mail_records as records
from fastmta.store.accounts import Accounts
from fastmta.store.env import open_environment
from fastmta.store.mailboxes import Mailboxes, folder_of
from tests.store.whole import problems
from tests.support import run

PROGRAM = Path(sys.executable).parent / "fastmta"
CONFIG = """
hostname = "relay.example.test"
data_dir = "data"
listener = [{ service = "smtp", bind = "127.0.0.1:2525" }]
"""
BOB = "bob@example.test"
WHEN = 820631134.0


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "fastmta.toml"
    path.write_text(CONFIG)
    accounts = Accounts(tmp_path / "data" / "accounts")
    accounts.add(BOB, "", Keys(b"", 1, b"", b""))
    accounts.add_aliases(BOB, ["robert@example.test"])
    accounts.close()
    return path


def mailbox(config: Path, *words: str | Path, code: int = 0) -> Result:
    command, *rest = map(str, words)
    done = CliRunner().invoke(group, [command, "-c", str(config), *rest])
    assert done.exit_code == code, done.output
    return done


def shown(config: Path, *words: str | Path, code: int = 0) -> list[dict[str, object]]:
    return [json.loads(line) for line in mailbox(config, *words, code=code).stdout.splitlines()]


def mails(count: int, first: int = 0) -> list[Mail]:
    keywords = ("$Forwarded",)
    return [
        Mail(
            b"From: a@b.test\r\nSubject: %d\r\n\r\nFrom me, number %d\r\n.\r\n" % (n, n),
            WHEN + n,
            n % 32,
            keywords if n % 3 else (),
        )
        for n in range(first, first + count)
    ]


def write_mbox(path: Path, found: list[Mail]) -> Path:
    path.write_bytes(b"".join(mbox.write(mail, "a@b.test") for mail in found))
    return path


def write_maildir(path: Path, found: list[Mail], folder: str = "cur") -> Path:
    for name in ("cur", "new", "tmp"):
        (path / name).mkdir(parents=True, exist_ok=True)
    for mail in found:
        letters = mail_sources.maildir_letters(mail.flags, list(mail.keywords))
        file = path / folder / f"{int(mail.date or 0)}.x.host:2,{letters}"
        file.write_bytes(mail.octets.replace(b"\r\n", b"\n"))
        os.utime(file, (mail.date or 0, mail.date or 0))
    return path


def stored(config: Path, name: str = "INBOX") -> list[Mail]:
    """What a mailbox has, in its order."""

    async def scenario() -> list[Mail]:
        boxes = Mailboxes(folder_of(config.parent / "data"), lambda account: 0)
        try:
            opened = await boxes.open(BOB, name)
            return [
                Mail(
                    b"".join(await boxes.read(opened.mailbox, uid)),
                    entry.date,
                    entry.flags,
                    tuple(entry.keywords),
                )
                for uid, entry in await boxes.entries(opened.mailbox)
            ]
        finally:
            await boxes.close()

    return run(scenario())


def test_an_mbox_comes_in_and_goes_out_as_it_was(config: Path, tmp_path: Path) -> None:
    source = write_mbox(tmp_path / "in.mbox", mails(40))
    done = mailbox(config, "import", "robert@example.test", source)
    assert done.stdout == "imported 40 messages\n"
    assert stored(config) == mails(40)
    mailbox(config, "export", BOB, tmp_path / "out.mbox")
    assert (tmp_path / "out.mbox").read_bytes() == source.read_bytes().replace(
        b"From a@b.test", b"From MAILER-DAEMON"
    )
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.mbox"]
    mailbox(config, "export", BOB, tmp_path / "out.mbox", code=1)


def test_a_maildir_comes_in_and_goes_out_as_it_was(config: Path, tmp_path: Path) -> None:
    source = write_maildir(tmp_path / "in", mails(40))
    assert shown(config, "import", BOB, source, "--json") == [{"imported": 40, "before": 0}]
    assert stored(config) == mails(40)
    mailbox(config, "export", BOB, tmp_path / "out", "--maildir")
    mailbox(config, "import", BOB, tmp_path / "out", "--mailbox", "Copy")
    assert stored(config, "Copy") == mails(40)
    again = mailbox(config, "export", BOB, tmp_path / "out", "--maildir")
    assert again.stdout == "exported 0 messages, 40 were exported before\n"


@pytest.mark.parametrize("options", [[], ["--maildir"]])
def test_what_is_exported_comes_in_again_in_its_order(
    config: Path, tmp_path: Path, options: list[str]
) -> None:
    """All of one second."""
    found = [Mail(b"Subject: %d\r\n\r\n" % n, WHEN, 0, ()) for n in range(12)]
    mailbox(config, "import", BOB, write_mbox(tmp_path / "in", found))
    mailbox(config, "export", BOB, tmp_path / "out", *options)
    mailbox(config, "import", BOB, tmp_path / "out", "--mailbox", "Copy")
    assert stored(config, "Copy") == found


@pytest.mark.parametrize("write", [write_mbox, write_maildir])
def test_what_is_imported_already_is_not_imported_again(
    config: Path, tmp_path: Path, write: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(write)
    monkeypatch.setattr(mail_sources, "NAMES", 7)
    source = write(tmp_path / "in", mails(20))
    mailbox(config, "import", BOB, source)
    done = mailbox(config, "import", BOB, source)
    assert done.stdout == "imported 0 messages, 20 were imported before\n"
    if write is write_mbox:  # mail has come since
        write(tmp_path / "in", mails(25))
    else:
        write(tmp_path / "in", mails(5, first=20))
    assert shown(config, "import", BOB, source, "--json") == [{"imported": 5, "before": 20}]
    assert stored(config) == mails(25)
    mailbox(config, "import", BOB, source, "--again", "--mailbox", "Other")
    mailbox(config, "import", BOB, source, "--again")
    assert stored(config) == mails(25) * 2
    assert stored(config, "Other") == mails(25)


def test_an_mbox_that_is_another_now_is_refused(config: Path, tmp_path: Path) -> None:
    source = write_mbox(tmp_path / "in", mails(20))
    mailbox(config, "import", BOB, source)
    write_mbox(source, mails(20, first=3))
    assert "other contents" in mailbox(config, "import", BOB, source, code=1).stderr
    mailbox(config, "import", BOB, source, "--again")
    assert stored(config) == mails(20) + mails(20, first=3)


@pytest.mark.parametrize("what", ["text", "folder"])
def test_what_is_no_mail_is_refused(config: Path, tmp_path: Path, what: str) -> None:
    source = tmp_path / "in"
    if what == "text":
        source.write_bytes(b"".join(mbox.write(m, "") for m in mails(3))[30:])
    else:
        source.mkdir()
    mailbox(config, "import", BOB, source, code=1)
    mailbox(config, "import", "nobody@example.test", source, code=1)


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "linked folder"])
def test_what_is_no_file_of_a_maildir_is_not_followed(
    config: Path, tmp_path: Path, what: str
) -> None:
    """A link would bring in what the one who imports may read, and the owner may not."""
    source, secret = write_maildir(tmp_path / "in", mails(1)), tmp_path / "secret"
    odd = source / "cur" / "999999999.odd"
    secret.mkdir()
    (secret / "file").write_bytes(b"Subject: secret\n\n")
    if what == "link":
        odd.symlink_to(secret / "file")
    elif what == "fifo":
        os.mkfifo(odd)
    elif what == "folder":
        odd.mkdir()
    else:
        (source / "new").rmdir()
        (source / "new").symlink_to(secret)
    done = mailbox(config, "import", BOB, source, code=1)
    assert str(source / "new" if what == "linked folder" else odd) in done.stderr
    assert stored(config) == ([] if what == "linked folder" else mails(1))


@pytest.mark.parametrize("name", ["", "a\nb", "a\x1b[2J", "x" * 600])
def test_what_is_no_name_of_a_mailbox_is_told(config: Path, tmp_path: Path, name: str) -> None:
    source = write_mbox(tmp_path / "in", mails(1))
    done = mailbox(config, "import", BOB, source, "--mailbox", name, code=1)
    assert f"cannot be a mailbox of {BOB}" in done.stderr
    assert "there are no mailboxes" in mailbox(config, "list").stdout


def test_what_comes_before_a_broken_place_stays_once(config: Path, tmp_path: Path) -> None:
    good = b"".join(mbox.write(mail, "a@b.test") for mail in mails(5))
    source = tmp_path / "in"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mbox, "LONGEST", 1 << 20)
        source.write_bytes(good + good.split(b"\n")[0] + b"\n" + b"x" * (6 << 20))
        mailbox(config, "import", BOB, source, code=1)
        mailbox(config, "import", BOB, source, code=1)
    assert stored(config) == mails(5)


def test_a_disk_that_fails_in_the_middle_leaves_no_gap(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail_import, "AT_ONCE", 12)
    monkeypatch.setattr(mail_import, "BATCH", 3)
    source = write_mbox(tmp_path / "in", mails(80))
    commit, commits = store_env.Environment._commit, []

    def failing(self: store_env.Environment, batch: list[object]) -> None:
        commits.append(len(batch))
        if len(commits) == 3:
            while len(batch) < mail_import.AT_ONCE and not self._pending:  # what comes behind it
                time.sleep(0.001)
            raise lmdb.DiskError("planted")
        commit(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_env.Environment, "_commit", failing)
        mailbox(config, "import", BOB, source, code=1)
    assert len(commits) > 3 or commits[2] == mail_import.AT_ONCE  # nothing came behind it
    assert 0 < len(stored(config)) < 80
    mailbox(config, "import", BOB, source)
    assert stored(config) == mails(80)


@pytest.mark.parametrize("write", [write_mbox, write_maildir])
def test_an_import_that_is_killed_goes_on_and_doubles_nothing(
    config: Path, tmp_path: Path, write: object
) -> None:
    assert callable(write)
    source = write(tmp_path / "in", mails(3000))
    words = [PROGRAM, "mailbox", "import", "-c", config, BOB, source]
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE)
        before = size_of(config)
        while process.poll() is None and size_of(config) < before + 700:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        assert process.stdout is not None
        process.stdout.close()
    assert kills >= 1
    left = size_of(config)
    assert shown(config, "import", BOB, source, "--json") == [
        {"imported": 3000 - left, "before": left}
    ]
    assert [mail.date for mail in stored_all(config)] == [WHEN + n for n in range(3000)]
    assert problems(folder_of(config.parent / "data")) == []


def size_of(config: Path) -> int:
    """Messages of INBOX, read from beside."""
    folder = folder_of(config.parent / "data")
    if not (folder / "data.mdb").exists():
        return 0
    try:
        env, db = open_environment(folder, records.DATABASES, readonly=True)
    except lmdb.Error:  # it is being made
        return 0
    with env, env.begin() as txn:
        row = txn.get(records.name_key(BOB, "INBOX"), db=db["mailboxes"])
        return records.unpack_mailbox(row).messages if row else 0


def stored_all(config: Path) -> list[Mail]:
    async def scenario() -> list[Mail]:
        boxes = Mailboxes(folder_of(config.parent / "data"), lambda account: 0)
        found, after = [], 0
        try:
            mailbox = (await boxes.open(BOB)).mailbox
            while page := await boxes.entries(mailbox, after):
                found += [Mail(b"", entry.date, entry.flags, ()) for _, entry in page]
                after = page[-1][0]
        finally:
            await boxes.close()
        return found

    return run(scenario())


def test_what_is_shown(config: Path, tmp_path: Path) -> None:
    assert mailbox(config, "list").stdout == "there are no mailboxes\n"
    assert problems(folder_of(config.parent / "data")) == []
    mailbox(config, "import", BOB, write_mbox(tmp_path / "in", mails(3)), "--mailbox", "Old")
    (inbox, old) = shown(config, "list", "--json", BOB)
    assert (inbox["mailbox"], inbox["messages"]) == ("INBOX", 0)
    assert (old["mailbox"], old["messages"], old["uidnext"]) == ("Old", 3, 4)
    assert "Old" in mailbox(config, "list").stdout
    second = shown(config, "show", BOB, "--mailbox", "Old", "--json")[1]
    assert second == {
        "uid": 2,
        "date": WHEN + 1,
        "size": len(mails(2)[1].octets),
        "flags": ["seen"],
        "keywords": ["$Forwarded"],
        "from": "a@b.test",
        "subject": "1",
    }
    assert "a@b.test" in mailbox(config, "show", BOB, "--mailbox", "Old").stdout
    one = mailbox(config, "show", BOB, "2", "--mailbox", "Old")
    assert one.stdout_bytes == mails(2)[1].octets
    mailbox(config, "show", BOB, "9", "--mailbox", "Old", code=1)
    mailbox(config, "show", BOB, "--mailbox", "None", code=1)
    mailbox(config, "export", BOB, tmp_path / "out", "--mailbox", "None", code=1)
    mailbox(config, "show", "nobody", code=2)


def test_an_export_that_was_cut_short_goes_on(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mail_export, "SAVE", 4)
    mailbox(config, "import", BOB, write_mbox(tmp_path / "in", mails(30)))
    add, added = mail_export.MboxTarget.add, []

    def failing(self: mail_export.MboxTarget, uid: int, mail: Mail) -> None:
        added.append(uid)
        add(self, uid, mail)
        if len(added) == 10:
            self._file.flush()
            raise OSError(28, "planted")

    monkeypatch.setattr(mail_export.MboxTarget, "add", failing)
    mailbox(config, "export", BOB, tmp_path / "out", code=1)
    done = mailbox(config, "export", BOB, tmp_path / "out")
    assert done.stdout == "exported 22 messages, 8 were exported before\n"
    mailbox(config, "import", BOB, tmp_path / "out", "--mailbox", "Copy")
    assert stored(config, "Copy") == mails(30)


def test_what_is_large_or_damaged_is_exported_or_told(config: Path, tmp_path: Path) -> None:
    large = Mail(b"A: b\r\n\r\n" + b"x" * 2_999_990 + b"\r\n", WHEN, 0, ())
    found = [*mails(2), large, *mails(2, first=2), large._replace(octets=large.octets[:40_000])]
    mailbox(config, "import", BOB, write_mbox(tmp_path / "in", found))
    mailbox(config, "export", BOB, tmp_path / "out")
    names = (b"From a@b.test", b"From MAILER-DAEMON")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes().replace(*names)
    damage(config, "bodies", records.body_key(2), b"\x01")
    done = mailbox(config, "export", BOB, tmp_path / "rest", code=1)
    assert "message 2 cannot be read" in done.stderr
    assert done.stdout == "exported 5 messages\n"


def damage(config: Path, database: str, key: bytes, row: bytes | None) -> None:
    env, db = open_environment(folder_of(config.parent / "data"), records.DATABASES)
    with env, env.begin(write=True) as txn:
        if row is None:
            assert txn.delete(key, db=db[database])
        else:
            txn.put(key, row, db=db[database])


def test_mail_of_an_account_that_is_gone_is_deleted(config: Path, tmp_path: Path) -> None:
    """Or who gets its name next would have it."""
    source = write_mbox(tmp_path / "in", mails(3))
    mailbox(config, "import", BOB, source)
    mailbox(config, "import", BOB, source, "--mailbox", "Sent")
    mailbox(config, "empty", "robert@example.test", "--mailbox", "Sent", "--yes")
    assert (stored(config, "Sent"), len(stored(config))) == ([], 3)
    accounts = Accounts(config.parent / "data" / "accounts")
    accounts.delete(BOB)
    accounts.close()
    mailbox(config, "empty", BOB, code=1)  # nobody says yes
    assert len(stored(config)) == 3
    assert mailbox(config, "empty", BOB, "--yes").stdout == f"deleted 3 messages of {BOB}\n"
    assert stored(config) == []
    assert problems(folder_of(config.parent / "data")) == []
    mailbox(config, "empty", "nobody@example.test", "--yes", code=1)
