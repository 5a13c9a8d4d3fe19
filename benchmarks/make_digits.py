"""Makes plugins/datasets/digits.safetensors from scikit-learn's copy of the UCI digits.

Run ``python benchmarks/make_digits.py [FILE]``. The order is that of the SHA-256 digests of "0" ...
"1796", so that it depends on no random number generator. The first 1,500 digits are for training,
the last 297 for testing.
"""

import hashlib
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from sklearn.datasets import load_digits


def main(path: Path) -> None:
    data = load_digits()
    order = sorted(range(len(data.target)), key=lambda i: hashlib.sha256(str(i).encode()).digest())
    tensors = {
        "images": np.ascontiguousarray(data.images[order].astype(np.uint8)),
        "labels": np.ascontiguousarray(data.target[order].astype(np.uint8)),
        "order": np.array(order, dtype=np.int16),
    }
    source = "Alpaydin, Kaynak: Optical Recognition of Handwritten Digits, UCI 1998, CC BY 4.0"
    path.write_bytes(save(tensors, metadata={"source": source}))


if __name__ == "__main__":
    default = Path(__file__).parents[1] / "plugins" / "datasets" / "digits.safetensors"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
