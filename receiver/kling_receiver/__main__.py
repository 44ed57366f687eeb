"""`python -m receiver` is `kling-receiver`."""

from kling_receiver.cli.main import main

main(prog_name="kling-receiver")
