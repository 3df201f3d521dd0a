"""The shells' completions of nfportd and nfportctl: completions.py SHARE ZSH, as /usr/share vendor-completions.

It must not know the commands. The one idea: click writes them, for what it completes later is what it parses.
"""

import sys
from pathlib import Path

from click.shell_completion import get_completion_class

from nfportd import __main__, cli

share = Path(sys.argv[1])
PLACES = {
    "bash": share / "bash-completion/completions/{}",
    "zsh": share / "zsh" / sys.argv[2] / "_{}",
    "fish": share / "fish/vendor_completions.d/{}.fish",
}

for program, command in (("nfportd", __main__.main), ("nfportctl", cli.main)):
    for shell, place in PLACES.items():
        complete = get_completion_class(shell)
        assert complete is not None
        file = Path(str(place).format(program))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(complete(command, {}, program, f"_{program.upper()}_COMPLETE").source())
