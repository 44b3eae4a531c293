"""What an installation does with supervisors that run, and with the unit that had nginx before.

`nginx-supervisor-migrate` is here, and what the package's scripts ask for. None of it is a part of
the supervisor: it calls systemctl and nginxctl, as a person would.
"""
