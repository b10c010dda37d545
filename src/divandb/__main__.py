"""`python -m divandb` is the `divandb` command."""

from divandb.cli import main

main()
