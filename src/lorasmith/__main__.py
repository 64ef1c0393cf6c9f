"""``python -m lorasmith`` is the ``lorasmith`` command."""

import sys

if __name__ == "__main__":
    try:
        from lorasmith.cli.main import main
    except KeyboardInterrupt:  # before the command line is there to say it
        sys.exit(130)
    main()
