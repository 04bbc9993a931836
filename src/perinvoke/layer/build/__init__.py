"""``perinvoke layer build``: what goes into a zip, byte for byte the same wherever it is built."""
