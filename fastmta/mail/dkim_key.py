"""Keys of DKIM, read and made (RFC 6376 section 3.3, RFC 8463).

Apart from `dkim`, so that only who signs pays for loading `cryptography`.
"""

from functools import partial

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from fastmta.mail.dkim import LEAST_BITS, BadKey, DkimKey, Sign


def load_key(pem: bytes, *, thorough: bool = False) -> DkimKey:
    """The key in a PEM file, BadKey otherwise.

    `thorough` proves that the numbers of an RSA key belong together, which takes 50 ms.
    """
    try:
        key = serialization.load_pem_private_key(
            pem, None, unsafe_skip_rsa_key_validation=not thorough
        )
    except TypeError:
        raise BadKey("has a password; write it without one") from None
    except UnsupportedAlgorithm:
        raise BadKey("is of a kind that DKIM does not know; make one of RSA or Ed25519") from None
    except ValueError:
        raise BadKey("holds no private key in PEM form") from None
    if isinstance(key, RSAPrivateKey):
        return _rsa(key)
    if isinstance(key, Ed25519PrivateKey):
        return _ed25519(key)
    raise BadKey("is of a kind that DKIM does not know; make one of RSA or Ed25519")


def _rsa(key: RSAPrivateKey) -> DkimKey:
    if key.key_size < LEAST_BITS:
        raise BadKey(f"has {key.key_size} bits; RFC 8301 wants {LEAST_BITS} at least")
    public = key.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    # RFC 6376 section 3.3.2: PKCS#1 1.5.
    sign = partial(key.sign, padding=PKCS1v15(), algorithm=Prehashed(hashes.SHA256()))
    return DkimKey("rsa-sha256", key.key_size, public, Sign(sign, partial(_der, key), rsa=True))


def _ed25519(key: Ed25519PrivateKey) -> DkimKey:
    """RFC 8463 section 3: what is signed is the hash, by PureEdDSA; section 4: p= has no frame."""
    public = key.public_key().public_bytes_raw()
    sign = Sign(key.sign, partial(_der, key), rsa=False)
    return DkimKey("ed25519-sha256", 256, public, sign)


def _der(key: RSAPrivateKey | Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def generate_key(kind: str) -> bytes:
    """A new key of "rsa2048" or "ed25519", in PEM form."""
    key = generate_private_key(65537, 2048) if kind == "rsa2048" else Ed25519PrivateKey.generate()
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
