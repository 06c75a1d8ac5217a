"""`python -m dispatcher`."""

from dispatcher.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
