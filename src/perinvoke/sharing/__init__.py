"""What an invocation shares with the other workers: bounded by its deadline, and given back when it ends.

Joins the two scopes: ``environment`` does the sharing and knows nothing of invocations, ``invocation`` knows who asks.
"""
