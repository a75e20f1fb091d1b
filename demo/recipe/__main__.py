"""``python -m demo.recipe``."""

from .train_base import main

raise SystemExit(main())
