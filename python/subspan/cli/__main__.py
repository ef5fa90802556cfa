"""``python -m subspan.cli``: the command without its script."""

from subspan.cli import main

if __name__ == "__main__":
    main()
