"""``python -m lorasmith`` is the ``lorasmith`` command."""

from lorasmith.cli.main import main

if __name__ == "__main__":
    main()
