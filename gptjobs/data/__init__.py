"""Data: how text becomes tokens on disk. Needs neither torch nor numpy."""
