"""python convert_to_onnx.py [--source ...] [--output ...] [--verify-only] [--offline]"""

from vecferry.cli.scripts import run_convert_to_onnx

if __name__ == "__main__":
    run_convert_to_onnx()
