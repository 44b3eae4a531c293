"""Pure decisions: no clock, no files, no processes. Standard library only."""
