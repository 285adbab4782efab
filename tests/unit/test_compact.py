"""The shipped bundle's own numbers, which must not move unless the bundle does."""
