"""``python -m trainer``, or by its path: ``python path/to/animelora/trainer``, as a portable Python needs it."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if __package__:
        from .cli import main
    else:
        here = Path(__file__).resolve().parent
        # Python may have put trainer/ itself first, where our modules would shadow others of the same name
        sys.path[:] = [str(here.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != here)]
        from trainer.cli import main
    sys.exit(main())
