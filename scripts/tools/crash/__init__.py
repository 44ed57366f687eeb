"""What a receiver keeps of its promises when it is killed: from outside, at every call that matters."""
