"""`python -m anytimeify`."""

from anytimeify.cli import main

if __name__ == "__main__":
    main()
