"""Convert: python convert_to_onnx.py [--source ...] [--output ...] [--verify-only] [--offline]."""

from vecferry.cli import run_script
from vecferry.cli.scripts import convert_to_onnx

if __name__ == "__main__":
    run_script(convert_to_onnx)
