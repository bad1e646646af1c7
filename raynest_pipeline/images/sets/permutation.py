"""A shuffled order of 0..n-1 that is calculated, not stored: n may be larger than any memory."""

import hashlib
from math import isqrt

ROUNDS = 8


def permuted(index: int, size: int, key: bytes) -> int:
    """Where `index` comes to lie in the shuffled order that `key` names: one to one on 0..size-1.

    A generalized Feistel network with cycle walking (Black and Rogaway, Ciphers with Arbitrary Finite
    Domains, 2002). The domain of the network is a square of side ceil(sqrt(size)), so few steps lead
    outside. The hash is BLAKE2b: the order is the same on every machine and release of Python.

    Raises:
        IndexError: `index` is not in 0..size-1.
    """
    if not 0 <= index < size:
        raise IndexError(f"{index} is not in 0..{size - 1}")
    side = isqrt(size - 1) + 1
    width = (side.bit_length() + 7) // 8 + 8
    while True:
        left, right = divmod(index, side)
        for round_number in range(ROUNDS):
            text = b"%d,%d,%d" % (round_number, size, right)
            digest = hashlib.blake2b(text, digest_size=min(width, 64), key=key[:64]).digest()
            left, right = right, (left + int.from_bytes(digest, "big")) % side
        index = left * side + right
        if index < size:
            return index
