"""`python -m star_cli`: the same as `star`."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the commands and run one; Ctrl-C is answered from the first moment on."""
    try:
        from star_cli.cli.app import main as run
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
