"""The files by which Hugging Face's GPT-2 tokenizer does what an encoding here does."""

import json
from collections.abc import Mapping
from itertools import pairwise

from gptjobs.config import BYTES
from gptjobs.data import encoding
from gptjobs.layout import Layout

END = "<|endoftext|>"


def files(layout: Layout, name: str) -> dict[str, bytes]:
    """Their contents by their names. Raises NotFound where the encoding is not in place."""
    ranks = {bytes([each]): each for each in range(256)} if name == BYTES else encoding.ranks(layout)
    vocabulary = {_spelled(token): rank for token, rank in ranks.items()}
    special = {} if name == BYTES else {END: len(ranks)}
    merges = ["#version: 0.2", *(f"{_spelled(one)} {_spelled(other)}" for one, other in _merges(ranks))]
    ends = {} if name == BYTES else dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False, "model_max_length": 1 << 30, **ends}
    return {
        "vocab.json": json.dumps(vocabulary | special, ensure_ascii=False).encode(),
        "merges.txt": ("\n".join(merges) + "\n").encode(),
        "tokenizer_config.json": json.dumps(settings, indent=2).encode(),
    }


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that each longer token is made of, by rank: what is left of its bytes once all pairs of lower ranks are
    merged. tiktoken's file has only the tokens."""
    longer = sorted((token for token in ranks if len(token) > 1), key=lambda token: ranks[token])
    return [_last_pair(token, ranks) for token in longer]


def _last_pair(token: bytes, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    parts = [bytes([each]) for each in token]
    while len(parts) > 2:
        pairs = [ranks.get(one + other, len(ranks)) for one, other in pairwise(parts)]
        place = pairs.index(min(pairs))
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def _spelled(token: bytes) -> str:
    return "".join(_LETTERS[each] for each in token)


def _letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it can be seen, else one from 256 on (Radford et al. 2019)."""
    seen = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(each) if each in seen else chr(next(others)) for each in range(256)]


_LETTERS = _letters()
