"""One module for each thing outside the process that the supervisor touches."""
