"""Runs the blocks of a page in the current folder, as a reader would who types them in order.

Gets ``[page, [[language, text, line], ...]]`` as JSON. Python blocks share one module, so what an
earlier one defined is there; a traceback shows the lines of the page.
"""

import json
import subprocess
import sys
from types import ModuleType


def main() -> None:
    """Run the blocks; the first one that fails ends it."""
    page, blocks = json.loads(sys.stdin.read())
    sys.path[0] = ""  # the reader's folder, not the one of this file
    sys.modules["__main__"] = reader = ModuleType("__main__")
    for language, text, line in blocks:
        print(f"--- {page}:{line}", flush=True)
        if language == "python":
            exec(compile("\n" * line + text, page, "exec"), vars(reader))
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)


if __name__ == "__main__":
    main()
