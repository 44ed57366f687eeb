"""`python -m kling_receiver` is the command `kling-receiver`."""

from kling_receiver.cli.main import main

main(prog_name="kling-receiver")
