"""``python -m aent`` is the command ``aent``."""

from aent.cli.main import main

if __name__ == "__main__":
    main()
