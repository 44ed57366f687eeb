"""Programs that were written for Kling, with only their address changed to the receiver's."""
