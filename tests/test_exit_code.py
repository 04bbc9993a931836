from __future__ import annotations

import pytest

from perinvoke.exit_code import describe_exit


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, "ended with exit code 0"),
        (3, "ended with exit code 3"),
        (-9, "was killed by signal 9 (SIGKILL)"),
        (-50, "was killed by signal 50"),
    ],
)
def test_an_exit_code_is_told_in_words(code, told):
    assert describe_exit(code) == told
