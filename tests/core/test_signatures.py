"""Signatures without the GIL: the same as those of `cryptography`, and each task told of once."""

import os
import sys
import threading
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from select import select
from time import monotonic

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from fastmta._core import lines
from fastmta._core.signatures import PrivateKey, SignatureQueue, Unavailable, find_libcrypto

DIGESTS = [sha256(bytes([number])).digest() for number in range(50)]
ED25519 = Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 1024)  # short, so that the tests are
Outcome = list[bytes] | Exception


def der(key: Ed25519PrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def twin(key: rsa.RSAPrivateKey) -> Callable[[bytes], bytes]:
    return partial(key.sign, padding=PKCS1v15(), algorithm=Prehashed(hashes.SHA256()))


@pytest.mark.parametrize("bits", [1024, 2048, 3072, 4096])
def test_rsa_signatures_are_those_of_cryptography(bits: int) -> None:
    key = rsa.generate_private_key(65537, bits)
    mine, sign = PrivateKey(der(key), rsa=True), twin(key)
    assert [mine(each) for each in DIGESTS[:5]] == [sign(each) for each in DIGESTS[:5]]


def test_ed25519_signatures_are_those_of_cryptography() -> None:
    mine = PrivateKey(der(ED25519), rsa=False)
    assert [mine(each) for each in DIGESTS] == [ED25519.sign(each) for each in DIGESTS]


@pytest.mark.parametrize(
    "octets",
    [b"", b"x", der(ED25519)[:-1], der(RSA)[:-1]],
    ids=["nothing", "one octet", "part of Ed25519", "part of RSA"],
)
def test_what_is_no_key_is_refused(octets: bytes) -> None:
    with pytest.raises(ValueError, match="cannot read the key"):
        PrivateKey(octets, rsa=True)


def test_what_is_no_digest_is_refused() -> None:
    key = PrivateKey(der(ED25519), rsa=False)
    with pytest.raises(ValueError, match="32 octets, not 31"):
        key(bytes(31))
    with pytest.raises(ValueError, match="32 octets, not 33"):
        SignatureQueue(1).submit([(key, bytes(32)), (key, bytes(33))], print)
    for wrong in [None, (key,), (key, None), (None, bytes(32)), (ED25519.sign, bytes(32))]:
        with pytest.raises((TypeError, ValueError)):
            SignatureQueue(1).submit([wrong], print)  # type: ignore[list-item]


def test_a_key_that_cannot_sign_says_so() -> None:
    with pytest.raises(ValueError, match="cannot sign"):
        PrivateKey(der(ED25519), rsa=True)(DIGESTS[0])


@pytest.mark.parametrize(
    ("path", "why"),
    [("/nowhere", "cannot be opened"), (lines.__file__, "is not linked with d2i_Auto")],
)
def test_where_there_is_no_libcrypto_is_told(path: str, why: str) -> None:
    with pytest.raises(Unavailable, match=why):
        find_libcrypto(path)
    assert len(PrivateKey(der(RSA), rsa=True)(DIGESTS[0])) == 128  # what was found stays


class Crew:
    """Threads that run a queue."""

    def __init__(self, threads: int) -> None:
        self.queue = SignatureQueue(threads)
        self.threads = [threading.Thread(target=self.queue.run) for _ in range(threads)]

    def __enter__(self) -> SignatureQueue:
        for thread in self.threads:
            thread.start()
        return self.queue

    def __exit__(self, *_: object) -> None:
        self.queue.close()
        for thread in self.threads:
            thread.join()


def collect(queue: SignatureQueue, count: int) -> None:
    """Tell of so many."""
    while count:
        assert select([queue.descriptor], [], [], 60)[0]
        for done, outcome in queue.collect():
            done(outcome)
            count -= 1
    assert queue.collect() == []
    assert select([queue.descriptor], [], [], 0)[0] == []


@pytest.mark.parametrize("threads", [1, 3])
def test_each_task_is_told_of_once_with_its_own_signatures(threads: int) -> None:
    keys = [PrivateKey(der(RSA), rsa=True), PrivateKey(der(ED25519), rsa=False)]
    expected = [[twin(RSA)(each), ED25519.sign(each)] for each in DIGESTS]
    told: list[list[Outcome]] = [[] for _ in range(1000)]
    with Crew(threads) as queue:
        for number, heard in enumerate(told):
            digest = DIGESTS[number % 50]
            mine = keys[number % 3 : number % 3 + 1] or keys
            queue.submit([(key, digest) for key in mine], heard.append)
            if number % 7 == 0:
                queue.flush()
        queue.flush()
        collect(queue, len(told))
    for number, heard in enumerate(told):
        one = expected[number % 50]
        assert heard == [one[number % 3 : number % 3 + 1] or one]


def test_threads_sign_while_another_keeps_the_gil() -> None:
    heard: list[Outcome] = []
    wanted = [(PrivateKey(der(RSA), rsa=True), DIGESTS[0])]
    interval = sys.getswitchinterval()
    with Crew(1) as queue:
        queue.submit(wanted, heard.append)
        queue.flush()
        collect(queue, 1)  # so the thread is there
        sys.setswitchinterval(1000)  # seconds for which nobody else gets the GIL from us
        try:
            queue.submit(wanted, heard.append)
            queue.flush()
            deadline = monotonic() + 60
            while not (done := queue.collect()):
                assert monotonic() < deadline
        finally:
            sys.setswitchinterval(interval)
    assert [outcome for _, outcome in done] == heard


def test_what_waits_when_it_is_closed_is_signed() -> None:
    heard: list[Outcome] = []
    key = PrivateKey(der(ED25519), rsa=False)
    crew = Crew(2)
    for _ in range(100):
        crew.queue.submit([(key, DIGESTS[0])], heard.append)
    with crew:
        pass
    collect(crew.queue, 100)
    assert heard == [[ED25519.sign(DIGESTS[0])]] * 100


def test_one_that_fails_spoils_no_other() -> None:
    heard: list[Outcome] = []
    good, bad = PrivateKey(der(ED25519), rsa=False), PrivateKey(der(ED25519), rsa=True)
    with Crew(1) as queue:
        for keys in ([good], [good, bad], [bad], [good]):
            queue.submit([(key, DIGESTS[0]) for key in keys], heard.append)
        queue.flush()
        collect(queue, 4)
    signature = [ED25519.sign(DIGESTS[0])]
    assert [type(each) for each in heard] == [list, ValueError, ValueError, list]
    assert [heard[0], heard[3]] == [signature, signature]


def test_a_key_lives_as_long_as_its_tasks() -> None:
    heard: list[Outcome] = []
    queue = SignatureQueue(1)
    queue.submit([(PrivateKey(der(RSA), rsa=True), DIGESTS[0])], heard.append)
    queue.close()
    queue.run()
    collect(queue, 1)
    assert heard == [[twin(RSA)(DIGESTS[0])]]


def test_a_queue_that_goes_takes_with_it_what_it_has() -> None:
    class Heard:
        gone = 0

        def __call__(self, outcome: Outcome) -> None: ...

        def __del__(self) -> None:
            Heard.gone += 1

    key = PrivateKey(der(ED25519), rsa=False)
    queue = SignatureQueue(1)
    descriptor = queue.descriptor
    queue.submit([(key, DIGESTS[0])], Heard())
    queue.close()
    queue.run()
    queue.submit([(key, DIGESTS[0])], Heard())
    del queue
    assert Heard.gone == 2
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
