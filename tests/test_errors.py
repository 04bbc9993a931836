from __future__ import annotations

import pickle

import pytest

from perinvoke import errors

ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.PerinvokeError)]


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_every_error_is_in_one_family_pickles_with_its_fields_and_is_documented(error):
    families = (errors.FixConfiguration, errors.TryAgain, errors.InvocationFailed)
    assert error in (errors.PerinvokeError, *families) or sum(issubclass(error, family) for family in families) == 1
    assert error.__doc__
    copy = pickle.loads(pickle.dumps(error("what happened", path="/tmp/x", limit=3)))
    assert (type(copy), str(copy), copy.path, copy.limit) == (error, "what happened", "/tmp/x", 3)
