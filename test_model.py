"""Say whether the converted model works here, and what else would: python test_model.py."""

from vecferry.cli import run_script
from vecferry.cli.scripts import test_model

if __name__ == "__main__":
    run_script(test_model)
