"""``perinvoke layer attach`` and ``detach``: one change to a function's configuration, and its exact reverse."""
