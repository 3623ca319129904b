"""Inputs by the million: pieces of a target's grammar and of its corpus, joined and damaged.

They come in blocks, each from a generator of its own, so that any of them can be made again from
the target, the seed and its number.
"""

import importlib
from pathlib import Path
from random import Random

HERE = Path(__file__).parent
BLOCK = 10_000  # inputs
MOST_PIECES = 12  # of one input; half of them have fewer than four
_POOL = 400  # pieces that the inputs of one block are made of
_SLICE = 60  # octets of a piece of the corpus


def pieces_of(name: str) -> list[bytes]:
    """What its grammar is made of: `PIECES` of the module that has the target."""
    for path in HERE.glob("*_targets.py"):
        module = importlib.import_module(f"tests.fuzz.{path.stem}")
        if hasattr(module, f"fuzz_{name}"):
            return module.PIECES[name]
    raise KeyError(name)


def corpus_of(name: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((HERE / "corpus" / name).iterdir())]


def block(name: str, seed: int, number: int) -> list[bytes]:
    """The inputs from `number` times BLOCK on."""
    draw = Random(f"{seed} {name} {number}")
    pool = _pool(draw, pieces_of(name), corpus_of(name))
    counts = draw.choices(range(1, MOST_PIECES + 1), _WEIGHTS, k=BLOCK)
    chosen = draw.choices(pool, k=sum(counts))
    inputs, at = [], 0
    for count in counts:
        made = b"".join(chosen[at : at + count])
        inputs.append(made if count % 4 else _damaged(draw, made))
        at += count
    return inputs


_WEIGHTS = [1 / count for count in range(1, MOST_PIECES + 1)]


def _pool(draw: Random, pieces: list[bytes], corpus: list[bytes]) -> list[bytes]:
    """Two thirds grammar, a quarter corpus, whole and in slices, and the rest any octets."""
    pool = draw.choices(pieces, k=_POOL * 2 // 3)
    pool += [_slice(draw, draw.choice(corpus)) for _ in range(_POOL // 4)]
    return pool + [draw.randbytes(draw.randint(1, 3)) for _ in range(_POOL // 12)]


def _slice(draw: Random, found: bytes) -> bytes:
    if len(found) <= _SLICE:
        return found
    start = draw.randrange(len(found))
    return found[start : start + draw.randint(1, _SLICE)]


def _damaged(draw: Random, data: bytes) -> bytes:
    """One octet is another one, doubled or gone."""
    at = int(draw.random() * len(data))
    return data[:at] + draw.choice((b"", data[at : at + 1] * 2, draw.randbytes(1))) + data[at + 1 :]
