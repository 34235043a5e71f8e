"""python test_model.py: does the converted model work here, and what else would?"""

from vecferry.cli.scripts import run_test_model

if __name__ == "__main__":
    run_test_model()
