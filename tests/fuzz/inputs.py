"""Inputs by the million: pieces of a target's grammar and of its corpus, joined and damaged.

They come in blocks, each from a generator of its own, so that any of them can be made again from
the target, the seed and its number, as long as pieces and corpus are the same.
"""

from pathlib import Path
from random import Random

HERE = Path(__file__).parent
BLOCK = 10_000  # inputs
PREFIXES = {"smtp_server": 2, "smtp_client": 2, "pop3": 2}  # octets that choose, and say nothing
_POOL = 400  # pieces that the inputs of one block are made of
_SLICE = 60  # octets of a piece of the corpus


def pieces_of(name: str) -> list[bytes]:
    """What its grammar is made of, one to a line of pieces/NAME, escaped as in a bytes literal.

    Below `## 6` each counts six times.
    """
    pieces, weight = [], 1
    for line in (HERE / "pieces" / name).read_text().splitlines():
        if line.startswith("## "):
            weight = int(line[3:])
        else:
            pieces += [line.encode().decode("unicode_escape").encode("latin-1")] * weight
    return pieces


def corpus_of(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((HERE / "corpus" / name).iterdir())]


def block(name: str, seed: int, number: int) -> list[bytes]:
    """The inputs from `number` times BLOCK on; half of them have fewer than four pieces or so."""
    draw = Random(f"{seed} {name} {number}")
    pieces, prefix = pieces_of(name), PREFIXES.get(name, 0)
    corpus = [found[prefix:] for found in corpus_of(name)]
    # A dialogue that is nothing but mistakes gets nowhere: it has more pieces, and better ones.
    pool = _pool(draw, pieces, corpus, 0.9 if prefix else 0.65)
    most = range(1, 24 if prefix else 12)
    counts = draw.choices(most, [1 / count for count in most], k=BLOCK)
    chosen = draw.choices(pool, k=sum(counts))
    inputs, at = [], 0
    for count in counts:
        made = b"".join(chosen[at : at + count])
        made = made if count % 4 else _damaged(draw, made)
        inputs.append(draw.randbytes(prefix) + made if prefix else made)
        at += count
    return inputs


def _pool(draw: Random, pieces: list[bytes], corpus: list[bytes], share: float) -> list[bytes]:
    """This share of it grammar; of the rest most is corpus, whole and in slices, or any octets."""
    pool = draw.choices(pieces, k=int(_POOL * share))
    rest = _POOL - len(pool)
    pool += [_slice(draw, draw.choice(corpus)) for _ in range(rest * 3 // 4)]
    return pool + [draw.randbytes(draw.randint(1, 3)) for _ in range(rest // 4)]


def _slice(draw: Random, found: bytes) -> bytes:
    if len(found) <= _SLICE:
        return found
    start = draw.randrange(len(found))
    return found[start : start + draw.randint(1, _SLICE)]


def _damaged(draw: Random, data: bytes) -> bytes:
    """One octet is another one, doubled or gone."""
    at = int(draw.random() * len(data))
    return data[:at] + draw.choice((b"", data[at : at + 1] * 2, draw.randbytes(1))) + data[at + 1 :]
