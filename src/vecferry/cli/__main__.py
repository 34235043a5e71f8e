"""Run the command line: python -m vecferry.cli."""

from vecferry.cli import main

main()
