"""`python -m napari_seamless` is the command line."""

import sys

from napari_seamless.cli import main

sys.exit(main())
