"""`python -m fewmask` is the command line."""

from fewmask.cli import main

if __name__ == "__main__":
    main()
