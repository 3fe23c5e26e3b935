"""What a reader of a train.py sees, and what Python runs."""

import ast
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoresearch_jax.common import syntax

PIECES = (
    *("\n", "\r", "\r\n", "\f", " ", "#", "# ", "x = 1", "ran = True", "'", '"""', "\\"),
    *("coding: utf-7", "coding=latin-1", "coding: raw_unicode_escape", "coding: utf-8"),
    *("+AAo-", "\\u000a", "\ufeff", "\u2028", "\x85", "\xe9", "\u202e"),
)


@pytest.mark.parametrize(
    "source",
    [
        b"# coding: utf-7\n# +AAo-ran = True\n",
        b"\n# coding: utf-7\n# +AAo-ran = True\n",
        b"\r# coding: utf-7\n# +AAo-ran = True\n",
        b"# coding: raw_unicode_escape\n# \\u000aran = True\n",
        b"# coding: unicode_escape\n# \\nran = True\n",
        b"# a remark\rran = True\n",
        b"# a remark\rran = True\r",
        b"\r# coding: utf-7\r# +AAo-ran = True\r",
        b"if False:\n    pass\n    \fran = True\n",
        b"x = 1" + b" " * 300 + b"; ran = True\n",
        "ｒan = True\n".encode(),
        "f'{(r\u1d43n := True)}'\n".encode(),
        "r\u0430n, ran = 1, 2\n".encode(),
        "\u3164, ran = 1, 2\n".encode(),
        "ran = {'a\u200b': 1}\n".encode(),
    ],
)
def test_code_that_looks_like_other_code_is_refused(source):
    names = {}
    exec(source, names)
    assert names["ran"]  # Python sees it
    assert syntax.misleading(source)


@pytest.mark.parametrize(
    "source",
    [
        b"",
        b"x = 1\r\ny = 2\r\n",
        b"\xef\xbb\xbfx = 1\n",
        b"# coding: latin-1\nx = '\xe9'\n",
        b"# -*- coding: iso-8859-15 -*-\nx = '\xa4'\n",
        b"# vim: set fileencoding=cp1252 :\nx = '\x80'\n",
        "# \u0414\nif x:\n\ty = '\U0001f600'\n\f\nz = 1\n".encode(),
        "\u03b21, \u03bb = 0.9, '\u0430\ufe0f'  # \uff52\u00e9\n".encode(),
    ],
)
def test_what_people_write_is_accepted(source):
    assert syntax.misleading(source) == ""


@pytest.mark.parametrize(
    "own", ["# \u200f right to left\n", "y = 0\r", "\u00e9 = 0\n", "y = 0;\fz = 0\n"]
)
def test_characters_of_the_users_own_are_no_reason(own):
    base = f"{own}x = 1\n".encode()
    assert syntax.misleading(b"# more\n" + base.replace(b"1", b"2"), base) == ""
    assert syntax.misleading(base)
    assert syntax.misleading(base + "\u202e".encode(), base)


@given(st.lists(st.sampled_from(PIECES), max_size=12), st.sampled_from(["utf-8", "latin-1"]))
def test_what_is_accepted_is_what_python_reads(pieces, codec):
    with contextlib.suppress(UnicodeEncodeError):
        source = "".join(pieces).encode(codec)
        if syntax.misleading(source):
            return
        with contextlib.suppress(SyntaxError, ValueError):
            seen = ast.dump(ast.parse(source.decode(syntax.encoding(source))))
            assert ast.dump(ast.parse(source)) == seen
