"""``perinvoke layer publish``: the same bytes once in each region."""
