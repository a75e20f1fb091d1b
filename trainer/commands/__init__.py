"""The sub-commands of ``python -m trainer``, one in each file. May import all rooms.

Each has ``add_parser(subparsers)``, which sets ``run`` as the parser's default, and ``run(args) -> exit status``.
Heavy imports happen inside ``run``, so that ``--help`` is quick.
"""
