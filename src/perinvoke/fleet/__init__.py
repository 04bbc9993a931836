"""What holds over all execution environments of a function, and over all functions: the third scope of sharing."""
