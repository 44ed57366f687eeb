"""`python -m kling_callback` is the command `kling`."""

from kling_callback.cli.main import main

main()
