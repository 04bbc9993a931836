"""The exec wrapper: the runtime's parent, which imports once before the fork and replaces workers that die."""
