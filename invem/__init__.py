"""invem learns a clean diffusion prior from corrupted observations by expectation-maximisation, and
restores with it.

The public names are everything that a plugin needs. They are listed once, in `__init__.pyi`, and
each is loaded when first used, so that `import invem` is light.
"""

import os

import lazy_loader

# Before torch is imported: a thread that waits for the others by spinning takes the core that they
# need, where another process has the rest of the machine.
if not {"OMP_WAIT_POLICY", "KMP_BLOCKTIME"} & os.environ.keys():
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", KMP_BLOCKTIME="0")

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
