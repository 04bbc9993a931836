"""The execution environment's scope: what its workers share, and what tells the living from the dead."""
