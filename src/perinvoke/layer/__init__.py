"""``perinvoke layer``: builds the Lambda layer, publishes it, attaches it to a function and takes it off again.

Not part of the layer itself.
"""
