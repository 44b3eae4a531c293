"""The procedures that carry out one action of the machine and end in one event."""
