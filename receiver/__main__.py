"""`python -m receiver` is `kling-receiver`."""

from receiver.cli import main

main(prog_name="kling-receiver")
