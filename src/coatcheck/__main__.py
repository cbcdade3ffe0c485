"""``python -m coatcheck`` and the console script."""

import sys


def main() -> None:
    """Runs the command line; without its libraries, says how to get them."""
    try:
        from coatcheck import cli
    except ModuleNotFoundError as error:
        sys.exit(f"coatcheck: {error.name} is missing; the command line needs: pip install 'coatcheck[serve]'")
    cli.main()


if __name__ == "__main__":
    main()
