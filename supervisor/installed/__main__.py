"""`python3 -IS .../supervisor/installed replace|release`: for the scripts of a package."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python put this folder in front; the packages are two above it.
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)
    from supervisor.installed.package import main

    sys.exit(main())
