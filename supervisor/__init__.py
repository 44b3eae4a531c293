"""nginx-supervisor: owns an nginx master, upgrades its binary, rolls back by itself."""
