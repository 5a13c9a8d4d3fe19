"""Arrays in files that a recipe names."""

from pathlib import Path
from typing import Any

import numpy as np

from invem import DataError


def read_array(who: str, file: str) -> np.ndarray[Any, Any]:
    """Reads a .npy file. An archive, an array of objects, and a header that claims more than the
    file holds are refused before anything is read.

    Args:
        who: The operator, for messages.
        file: The path.

    Raises:
        DataError: If the file is missing or cannot be read.
    """
    try:
        return np.array(np.lib.format.open_memmap(Path(file).expanduser(), mode="r"))
    except (OSError, ValueError, OverflowError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{who}: {file} cannot be read: {reason}") from None
