"""Runs the blocks of a page in the current folder, as a reader would who types them in order.

Gets ``[page, [[language, text, line], ...]]`` as JSON. Python blocks share one module, so what an
earlier one defined is there; a traceback shows the lines of the page. Bash blocks go to bash, but
for those that hold commands of this package alone: they are called here, since to start one takes
seconds.
"""

import json
import re
import shlex
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
        elif commands := own_commands(text):
            from napari_seamless.cli import main as command_line

            for words in commands:
                if code := command_line(words):
                    sys.exit(code)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)


def own_commands(text: str) -> list[list[str]]:
    """Return the arguments of each command, if all are this package's and use nothing of bash."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    commands = [words for words in found if words]
    is_plain = not re.search(r"[|&;<>$`*?~]", text)
    if not is_plain or any(words[0] != "napari-seamless" for words in commands):
        return []
    return [words[1:] for words in commands]


if __name__ == "__main__":
    main()
