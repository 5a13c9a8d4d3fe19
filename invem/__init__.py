"""invem learns a clean diffusion prior from corrupted observations by expectation-maximisation, and
restores with it.

The public names are everything that a plugin needs. They are listed once, in `__init__.pyi`, and
each is loaded when first used, so that `import invem` is light.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
