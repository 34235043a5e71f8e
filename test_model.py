"""python test_model.py: does the converted model work here, and what else would?"""

from vecferry.cli import run_script
from vecferry.cli.scripts import test_model

if __name__ == "__main__":
    run_script(test_model)
