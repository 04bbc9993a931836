"""The invocation's scope: what one call of the handler has to itself, and what is undone when it ends."""
