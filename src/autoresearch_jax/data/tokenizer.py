"""A byte-level BPE tokenizer, trained once on the training text.

`prepare.py` imports this module and `packing`, so the fingerprint of the scoring code covers them.
"""

import contextlib
import functools
import itertools
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    import tiktoken

Item = TypeVar("Item")

BOS = "<|bos|>"
RESERVED = (BOS, "<|user|>", "<|assistant|>", "<|end|>")  # ids 0 to 3; only BOS is used
# GPT-4's pattern to split text into words, but with at most two digits in a group: a small
# vocabulary has better uses for its tokens than numbers of three digits.
SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)"  # English contractions
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # a word, with one space or sign before it
    r"|\p{N}{1,2}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # punctuation, with the line ends after it
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
VERSION = 3  # of the vocabulary that the same text gives
TRAIN_CHARS = 1_000_000_000  # characters to train on, from the start
TRAIN_DOCUMENT_CHARS = 10_000  # of each document
TRAIN_WORD_CHARS = 256  # of each word: to merge a longer one takes the square of its length
ENCODE_SLICE = 32  # documents that a thread encodes at a time
LONG_WORD = re.compile(
    r"[^\W\d_]{N}(?=[^\W\d_])|(?:[^\w\s]|_){N}(?=[^\w\s]|_)|\s{N}(?=\s\s)".replace(
        "N", str(TRAIN_WORD_CHARS)
    )
)
# tiktoken fails on a million spaces, and `tokenizers` on ten million. Without the look back, each
# space of a long run would begin a search.
LONG_SPACE = re.compile(r"(?<!\s)\s{10000}")
PART_CHARS = 1_000_000  # of a text with such a run, encoded at a time


class Tokenizer:
    """A byte-level BPE vocabulary, lossless on any UTF-8 text.

    Text that looks like a reserved token is encoded as ordinary text.
    """

    def __init__(self, path: Path):
        """Read a tokenizer.json. Raises the errors of `tokenizers`."""
        import tokenizers  # neither a training nor a scoring needs it

        self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        self._tokenizer.encode_special_tokens = True
        self.bos_id = RESERVED.index(BOS)
        self.vocab_size: int = self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text, without BOS."""
        return self._tokenizer.encode(text).ids

    def encode_documents(self, texts: list[str]) -> list[np.ndarray]:
        """Return each document as BOS and its tokens, uint16 [length + 1]. Uses every core."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            slices = pool.map(self._encode_slice, batched(texts, ENCODE_SLICE))
            return [document for documents in slices for document in documents]

    def _encode_slice(self, texts: list[str]) -> list[np.ndarray]:
        documents = []
        for text in texts:
            tokens: Any
            if len(text) >= 10_000 and LONG_SPACE.search(text):
                parts = (text[at : at + PART_CHARS] for at in range(0, len(text), PART_CHARS))
                tokens = list(itertools.chain.from_iterable(map(self.encode, parts)))
            else:
                tokens = self._fast.encode_to_numpy(text, disallowed_special=())
            document = np.empty(len(tokens) + 1, np.uint16)
            document[0], document[1:] = self.bos_id, tokens
            documents.append(document)
        return documents

    @functools.cached_property
    def _fast(self) -> "tiktoken.Encoding":
        """The same function of text in half the time; encoding is most of a preparation.

        tiktoken merges the pair whose token has the lowest id, `tokenizers` the pair that was
        merged first in training. This is the same pair, because ids follow the order of merges.
        """
        import tiktoken

        ranks = {spelled: index for index, spelled in self.spelled().items()}
        return tiktoken.Encoding(
            "bytes", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
        )

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of a token sequence; `decode(encode(text)) == text`."""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=False)

    def spelled(self) -> dict[int, bytes]:
        """Return token -> the bytes that it stands for, without reserved tokens."""
        alphabet = _byte_alphabet()
        return {
            index: bytes(alphabet[character] for character in token)
            for token, index in self._tokenizer.get_vocab().items()
            if token not in RESERVED
        }

    def token_bytes(self) -> np.ndarray:
        """Return how many bytes each token stands for, int32 [vocab_size]; 0 if it is reserved.

        A lone continuation byte counts as the one byte it is.
        """
        lengths = np.zeros(self.vocab_size, np.int32)
        for index, spelled in self.spelled().items():
            lengths[index] = len(spelled)
        return lengths


@contextlib.contextmanager
def merges_reported(report: Callable[[int], object]) -> Iterator[None]:
    """Report how many merges `train` has made: while it merges, it lets no other thread run."""

    def read(record: logging.LogRecord) -> bool:
        if found := re.search(r"(\d+)/\d+ merges", record.getMessage()):
            report(int(found[1]))
        return False

    logger = logging.getLogger("rustbpe")
    logger.setLevel(logging.INFO)
    logger.addFilter(read)
    try:
        yield
    finally:
        logger.removeFilter(read)


def train(documents: Iterable[str], path: Path, vocab_size: int) -> None:
    """Train a vocabulary of `vocab_size` on `documents` and write it to `path` as JSON.

    A very short text yields fewer tokens. The trainer is the original's, which takes half the time
    of the one in `tokenizers`.
    """
    import rustbpe
    import tokenizers

    trainer = rustbpe.Tokenizer()
    parts = itertools.chain.from_iterable(map(_short_words, _beginnings(documents)))
    trainer.train_from_iterator(parts, vocab_size - len(RESERVED), pattern=SPLIT_PATTERN)
    ranks = {bytes(token): rank for token, rank in trainer.get_mergeable_ranks()}
    spelling = {byte: character for character, byte in _byte_alphabet().items()}

    def spelled(token: bytes) -> str:
        return "".join(spelling[byte] for byte in token)

    vocabulary = {token: index for index, token in enumerate(RESERVED)}
    vocabulary |= {spelled(token): len(RESERVED) + rank for token, rank in ranks.items()}
    merges = [
        (spelled(left), spelled(right))
        for left, right in (_merged_from(token, ranks) for token in ranks if len(token) > 1)
    ]
    pre_tokenizers = tokenizers.pre_tokenizers
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(list(RESERVED))
    path.write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def _beginnings(documents: Iterable[str]) -> Iterator[str]:
    """Yield the first TRAIN_DOCUMENT_CHARS of each document, TRAIN_CHARS in total."""
    chars = 0
    for document in documents:
        piece = document[:TRAIN_DOCUMENT_CHARS]
        yield piece
        chars += len(piece)
        if chars >= TRAIN_CHARS:
            return


def _short_words(text: str) -> Iterator[str]:
    """Yield a text in parts, divided within words, signs and spaces that are very long.

    Such as base64, or one character repeated. Everything else has the same words as the whole.
    """
    words = text.split()
    chars = sum(map(len, words))
    start = 0
    if max(map(len, words), default=0) > TRAIN_WORD_CHARS or (
        len(text) - chars - len(words) >= TRAIN_WORD_CHARS - 1  # without the one that ends a word
    ):
        for found in LONG_WORD.finditer(text):
            yield text[start : found.end()]
            start = found.end()
    yield text[start:]


def _merged_from(token: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """Return the two tokens that a token was merged from, by applying all merges before its own."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [left + right for left, right in itertools.pairwise(parts)]
        place = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        parts[place : place + 2] = [pairs[place]]
    return parts[0], parts[1]


def _byte_alphabet() -> dict[str, int]:
    """Return the character that a byte-level vocabulary writes for each byte -> that byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yield lists of `size` items, the last one shorter: itertools.batched of Python 3.12."""
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch
